"""Parts of a vision transformer: configuration, token state, blocks, and the reducer protocol."""
