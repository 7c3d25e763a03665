"""Whether promises are kept: what `make bench-slo` measures, against real servers and in the simulator."""
