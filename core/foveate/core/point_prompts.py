"""Point prompts: the features of an image, and the points from which a light decoder segments an object."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_POINTS = 32
"""Points in one request at most."""


@dataclass(frozen=True, slots=True)
class Features:
    """Features of one image or tile, from which point prompts are answered. Channels are the last axis."""

    coarse: NDArray[np.float16]
    """(S / patch, S / patch, W), for an input of side S and a trunk of width W."""
    fine: NDArray[np.float16]
    """(S / 4, S / 4, F)."""

    @property
    def nbytes(self) -> int:
        """Bytes of both arrays."""
        return self.coarse.nbytes + self.fine.nbytes


@dataclass(frozen=True, slots=True)
class Point:
    """A point on the image or tile of the features. x and y are in 0..1 of its width and height."""

    x: float
    y: float
    positive: bool = True
    """True for a point on the object, False for a point off it."""


@dataclass(frozen=True, slots=True)
class PointPrompt:
    """The media of a request with task `clicks`."""

    features: Features
    points: tuple[Point, ...]
    """1 to MAX_POINTS."""

    @property
    def nbytes(self) -> int:
        """Bytes of the features."""
        return self.features.nbytes
