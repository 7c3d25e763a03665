"""Benches of caches, of Ray Serve, and of autoscalers for adaptive replicas."""
