"""Runners: one model on one device, called with a batch and a plan."""
