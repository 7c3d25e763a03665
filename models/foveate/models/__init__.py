"""Elastic vision transformers. Torch lives here and only here; nothing of HTTP, queues or Redis."""
