"""The `foveate` command."""
