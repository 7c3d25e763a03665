"""Endless streams of training batches, drawn in a worker process."""

from collections.abc import Callable, Iterator
from typing import TypeVar

import cv2
from torch.utils.data import DataLoader, IterableDataset

BatchT_co = TypeVar("BatchT_co", covariant=True)


class StepStream(IterableDataset[BatchT_co]):
    """The batches of a given step and all later ones. The step alone decides what is in a batch."""

    def __init__(self, start: int, draw: Callable[[int], BatchT_co]) -> None:
        self.start, self.draw = start, draw

    def __iter__(self) -> Iterator[BatchT_co]:
        cv2.setNumThreads(1)
        step = self.start
        while True:
            yield self.draw(step)
            step += 1


def prefetched(start: int, draw: Callable[[int], BatchT_co], ahead: int = 6) -> Iterator[BatchT_co]:
    """The batches from a step on, which one worker process draws up to `ahead` batches in advance."""
    stream = StepStream(start, draw)
    return iter(DataLoader(stream, batch_size=None, num_workers=1, prefetch_factor=ahead))
