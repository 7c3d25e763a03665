"""Measuring the quality and the cost of plans, and choosing the rungs of a ladder."""
