"""The error of a checkpoint that exists, and that the elastic trunk does not represent."""

from foveate.core.errors import SetupError

STATE_ARCHITECTURE = "for another network of timm, state its name with --architecture"
"""Part of errors about weights that are no plain ViT."""


class NotElastic(SetupError):
    """The trunk does not represent this checkpoint. It may be served as an opaque classifier."""
