"""From a model name to a warm runner."""
