"""The kinds of models as they are read, before a runner has them."""

from foveate.models.huggingface import Pretrained
from foveate.models.opaque.checkpoint import OpaqueCheckpoint
from foveate.models.weights.checkpoint import Checkpoint

ReadModel = Checkpoint | Pretrained | OpaqueCheckpoint
"""A model on the elastic trunk, one that runs in transformers, or an opaque network."""
