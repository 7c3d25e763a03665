"""The response cache and the feature cache, on the one cache interface."""
