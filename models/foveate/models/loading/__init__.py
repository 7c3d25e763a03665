"""Load a model by name, choose its precision, attach its profile, and warm it up."""
