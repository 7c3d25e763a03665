"""Measure the quality and cost of plans, and choose the rungs of a ladder."""
