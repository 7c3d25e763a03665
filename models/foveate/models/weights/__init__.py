"""Checkpoints: reading, conversion, and model families."""
