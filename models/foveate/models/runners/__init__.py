"""Runners: one model on one device. The engine calls a runner with a batch and a plan."""
