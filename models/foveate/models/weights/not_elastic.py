"""The error of a checkpoint that exists, and that the elastic trunk does not represent."""

from foveate.core.errors import SetupError


class NotElastic(SetupError):
    """The trunk does not represent this checkpoint. It may be served as an opaque classifier."""
