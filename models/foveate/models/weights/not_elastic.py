"""The refusal of a checkpoint that exists, but that the elastic trunk does not represent."""

from foveate.core.errors import SetupError


class NotElastic(SetupError):
    """The trunk cannot compute exactly what this checkpoint computes. Another runner may serve it."""
