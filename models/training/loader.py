"""Draw batches of training scenes with one labelled object each, in a worker process."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch

from training.batches import SceneBatch
from training.scenes import draw
from training.streams import prefetched


def draw_batch(step: int, size: int) -> SceneBatch:
    """The scenes of a step. The step alone decides what they are."""
    # A stride that shares no factor with the number of classes mixes the classes of a batch.
    first = step * size
    scenes = [draw("train", (first + i) * 7919 % (2**40)) for i in range(size)]
    return SceneBatch(
        torch.from_numpy(np.stack([s.image for s in scenes])),
        torch.tensor([s.objects[0].label for s in scenes]),
        torch.from_numpy(np.stack([s.objects[0].mask for s in scenes])),
    )


def batches(start: int, size: int) -> Iterator[SceneBatch]:
    """Endless batches of fresh scenes from a step on, drawn a few batches ahead."""
    return prefetched(start, partial(draw_batch, size=size))
