"""Elastic vision transformers. Only this package imports torch. It knows nothing of HTTP, queues or Redis."""
