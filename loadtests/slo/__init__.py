"""Deadlines under load: what `make bench-slo` measures, on real servers and in the simulator."""
