"""Batches of training scenes with their labels and per-patch labels, made in a worker process."""

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from training.emoji import LABELS
from training.scenes import Scene, draw

IGNORE = -100
BACKGROUND = len(LABELS)


@dataclass(frozen=True, slots=True)
class Batch:
    """One training batch."""

    images: Tensor
    """(B, H, W, 3) uint8."""
    labels: Tensor
    """(B,) int64."""
    patch_labels: Tensor
    """(B, P) int64: the object's class, BACKGROUND, or IGNORE where a patch holds a bit of both."""


def patch_labels(scene: Scene, patch: int) -> np.ndarray:
    """Class of each patch that its object covers by at least a third: (P,) int64."""
    thing = scene.objects[0]
    h, w = thing.mask.shape
    share = thing.mask.reshape(h // patch, patch, w // patch, patch).mean((1, 3)).ravel()
    out = np.full(share.shape, IGNORE, np.int64)
    out[share >= 0.33] = thing.label
    out[share == 0] = BACKGROUND
    return out


class SceneStream(IterableDataset[Batch]):
    """Endless fresh scenes from a given step on; every step's scenes are fixed by its number alone."""

    def __init__(self, start: int, batch: int, patch: int = 16) -> None:
        self.start, self.batch, self.patch = start, batch, patch

    def __iter__(self) -> Iterator[Batch]:
        cv2.setNumThreads(1)
        step = self.start
        while True:
            # A stride that shares no factor with the class count mixes the classes of a batch.
            first = step * self.batch
            scenes = [draw("train", (first + i) * 7919 % (2**40)) for i in range(self.batch)]
            yield Batch(
                torch.from_numpy(np.stack([s.image for s in scenes])),
                torch.tensor([s.objects[0].label for s in scenes]),
                torch.from_numpy(np.stack([patch_labels(s, self.patch) for s in scenes])),
            )
            step += 1


def batches(start: int, batch: int) -> Iterator[Batch]:
    """The stream through one worker process, a few batches ahead."""
    return iter(DataLoader(SceneStream(start, batch), batch_size=None, num_workers=1, prefetch_factor=6))
