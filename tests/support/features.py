"""Features of one tile of an image, made without a model."""

import numpy as np

from foveate.core.outcome import ClassMaps
from foveate.core.plan import Plan
from foveate.core.point_prompts import Features
from foveate.gateway.caching.features import TileFeatures


def tile_features(cells: int = 8, classes: np.ndarray | None = None) -> TileFeatures:
    """Random features of cells x cells positions. classes: (cells, cells) of the class maps; None: all 0."""
    rng = np.random.default_rng(0)
    coarse = rng.random((2, 2, 4)).astype(np.float16)
    fine = rng.random((cells, cells, 4)).astype(np.float16)
    labels = np.zeros((cells, cells), np.uint8) if classes is None else classes
    values = np.unique(labels)
    maps = ClassMaps(
        tuple(values.tolist()), np.stack([labels == value for value in values]).astype(np.float16)
    )
    plan, scores = Plan("m", 64, reducer="evit:0.5"), np.array([0.25, 0.75], np.float32)
    return TileFeatures(Features(coarse, fine), maps, plan, 0.75, "load", 5, 4, scores)
