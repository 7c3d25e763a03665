"""Online estimates: batch latency, arrival rate, and the CPU load of this host."""
