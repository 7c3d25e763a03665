"""Benchmarks and load tests. Not installed with the package."""
