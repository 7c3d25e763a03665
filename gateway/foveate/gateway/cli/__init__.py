"""The `foveate` command line."""
