"""Estimates that the engine learns online: batch latency, arrivals, CPU load."""
