"""Your own model: a Python class with one method, `predict`, or an ONNX file. Needs no torch."""

from foveate.core.model import InputSpec
from foveate.models.own.protocol import OwnModel

__all__ = ["InputSpec", "OwnModel"]
