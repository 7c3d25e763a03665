"""Benchmark other serving systems with the same network, weights and images: `make bench-peers`."""
