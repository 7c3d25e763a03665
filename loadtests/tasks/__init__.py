"""Measure segmentation, clicks, video clips, and mixed traffic: `make bench-tasks`."""
