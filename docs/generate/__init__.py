"""Pages of the documentation that are generated at build time, and the checks on the built site."""
