"""Measure the elastic axes of the shipped models: `make bench-elastic`."""
