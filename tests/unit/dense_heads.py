"""A small dense head whose weights are the same every time, for models under test."""

import torch

from foveate.models.geometry import Geometry
from foveate.models.heads.dense import DenseHead, DenseSpec


def dense_head(g: Geometry, classes: int = 2) -> DenseHead:
    """Drawn apart from the global random state."""
    with torch.random.fork_rng():
        torch.manual_seed(11)
        return DenseHead(g, DenseSpec(classes, width=8, fine=8)).eval()
