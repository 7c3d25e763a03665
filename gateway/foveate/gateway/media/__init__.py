"""Untrusted image and video bytes to pixels, and masks to image files."""
