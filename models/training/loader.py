"""Batches of training scenes with their labels and masks, made in a worker process."""

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from training.emoji import LABELS
from training.scenes import draw

IGNORE = -100
BACKGROUND = len(LABELS)


@dataclass(frozen=True, slots=True)
class Batch:
    """One training batch."""

    images: Tensor
    """(B, H, W, 3) uint8."""
    labels: Tensor
    """(B,) int64."""
    masks: Tensor
    """(B, H, W) bool: the pixels where the object is seen."""

    def patch_labels(self, side: int) -> Tensor:
        """(B, side * side) int64 for a grid of patches: the object's class where it covers at least a
        third of a patch, BACKGROUND where it covers none of it, IGNORE where it covers a bit."""
        share = F.adaptive_avg_pool2d(self.masks.unsqueeze(1).float(), side).flatten(1)
        label = self.labels.unsqueeze(1).expand_as(share)
        return torch.where(share >= 0.33, label, torch.where(share == 0, BACKGROUND, IGNORE))


class SceneStream(IterableDataset[Batch]):
    """Endless fresh scenes from a given step on; every step's scenes are fixed by its number alone."""

    def __init__(self, start: int, batch: int) -> None:
        self.start, self.batch = start, batch

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
                torch.from_numpy(np.stack([s.objects[0].mask for s in scenes])),
            )
            step += 1


def batches(start: int, batch: int) -> Iterator[Batch]:
    """The stream through one worker process, a few batches ahead."""
    return iter(DataLoader(SceneStream(start, batch), batch_size=None, num_workers=1, prefetch_factor=6))
