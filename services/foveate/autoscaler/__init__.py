"""Decides how many replicas a model needs to serve all requests at full quality."""
