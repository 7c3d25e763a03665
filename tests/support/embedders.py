"""Small models that make embeddings, and what full embeds."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from foveate.core.outcome import Result
from foveate.models.runners.image import TorchRunner
from foveate.models.weights.checkpoint import Checkpoint, save
from tests.support.measuring import CONFIG, tiny

EMBEDDER = replace(CONFIG, classes=0)
"""A trunk without a classifier: 24 features."""


def embedder(seed: int = 0) -> Checkpoint:
    """A random model that embeds different images differently."""
    return tiny(seed, EMBEDDER, "embedder")


def saved_embedder(folder: Path) -> Path:
    """The model in a file, with its card."""
    path = folder / "embedder.safetensors"
    save(path, embedder())
    return path


def embedded(runner: TorchRunner, pixels: NDArray[np.uint8], plan: str = "full") -> NDArray[np.float32]:
    """The embedding of an image (S, S, 3) under a plan."""
    chosen = runner.card.plan(plan)
    (result,) = runner.run(runner.stack([pixels], chosen), chosen)
    assert isinstance(result, Result)
    return result.scores
