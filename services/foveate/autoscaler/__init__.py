"""How many replicas a model needs, from what serving everybody at full would take."""
