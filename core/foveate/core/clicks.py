"""What a model that names pixels keeps of a picture, and the clicks that are then answered from it alone."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_POINTS = 32
"""Clicks on one picture at most."""


@dataclass(frozen=True, slots=True)
class Features:
    """One picture, or one window of it, as its model has understood it. Channels come last."""

    coarse: NDArray[np.float16]
    """(S / patch, S / patch, W)."""
    fine: NDArray[np.float16]
    """(S / 4, S / 4, F)."""

    @property
    def nbytes(self) -> int:
        return self.coarse.nbytes + self.fine.nbytes


@dataclass(frozen=True, slots=True)
class Point:
    """A click, x and y in 0..1 of what the features are of."""

    x: float
    y: float
    on: bool = True
    """On the object that is meant; False: on something else."""


@dataclass(frozen=True, slots=True)
class Clicked:
    """The medium of task `clicks`."""

    features: Features
    points: tuple[Point, ...]
    """1 to MAX_POINTS."""

    @property
    def nbytes(self) -> int:
        return self.features.nbytes
