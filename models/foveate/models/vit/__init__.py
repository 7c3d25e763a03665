"""The elastic vision transformer, the resolution of plans for it, its cost, and stitches of two models."""
