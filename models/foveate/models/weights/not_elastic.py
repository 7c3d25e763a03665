"""The refusal of a checkpoint that exists, but that the elastic trunk does not represent."""

from foveate.core.errors import SetupError

STATE_ARCHITECTURE = "for another network of timm, state its name with --architecture"
"""Part of errors about weights that are no plain ViT."""


class NotElastic(SetupError):
    """The trunk cannot compute exactly what this checkpoint computes. Another runner may serve it."""
