"""Open-loop load tests that score latency and accuracy together: `python -m loadtests.load`."""
