"""What a plan keeps, told from its answers: how often it is right, or how well its masks lie."""

import io
import statistics
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from foveate.core.errors import SetupError
from foveate.core.outcome import ClassMaps, Result
from foveate.models.profiling.timing import FAILED

Mask = NDArray[np.uint8]
"""(H, W): 0 the background, k the model's label k - 1."""


class Evaluator(ABC):
    """Looks at the answers of one plan after the other, full's first."""

    @abstractmethod
    def look(self, results: Sequence[Result | Exception]) -> None:
        """The plan's answers to the next pictures, in order."""

    @abstractmethod
    def done(self) -> tuple[float, float | None]:
        """That was the plan's last answer: what it keeps of full's quality, and its accuracy where somebody
        said what is right. Raises SetupError where full's accuracy is 0."""


class Top1(Evaluator):
    """Accuracy is top-1; without labels, quality is how often the answer is full's."""

    def __init__(self, targets: Sequence[int] | None, full: Sequence[int] = ()) -> None:
        """full: the classes that full names, where they are known already; FAILED where it had no answer."""
        self.targets, self.full = targets, tuple(full)
        self._named: list[int] = []

    def look(self, results: Sequence[Result | Exception]) -> None:
        self._named += [FAILED if isinstance(r, Exception) else int(r.scores.argmax()) for r in results]

    def done(self) -> tuple[float, float | None]:
        named, self._named = tuple(self._named), []
        self.full = self.full or named
        if self.targets is None:
            return _share(named, self.full), None
        accuracy, of_full = _share(named, self.targets), _share(self.full, self.targets)
        if not of_full:
            raise SetupError("full names every picture wrongly, so there is no accuracy for a plan to keep")
        return min(1.0, accuracy / of_full), accuracy


def _share(named: Sequence[int], wanted: Sequence[int]) -> float:
    """How often the two agree, where anything is wanted; an answer that failed is wrong."""
    return statistics.fmean(one == other for one, other in zip(named, wanted, strict=True) if other != FAILED)


class MeanIoU(Evaluator):
    """Accuracy is the mean over classes of intersection over union, all pictures taken together; without
    masks to compare with, full's are taken for right."""

    def __init__(
        self, truth: Sequence[Mask] | None, classes: int, full: float | None = None, frames: int = 0
    ) -> None:
        """truth: the mask of each picture, or of each frame of each clip; full: the accuracy of full, where
        it is known already; frames: of each clip, 0 for pictures. A frame that a plan does not look at is
        taken to be as the last one that it did."""
        self.truth, self.classes, self.full, self.frames = truth, classes, full, frames
        self.labelled = truth is not None
        self._own: list[Mask] = []
        self._seen = 0
        self._both, self._either = (np.zeros(classes, np.int64) for _ in range(2))

    def look(self, results: Sequence[Result | Exception]) -> None:
        for maps in (maps for result in results for maps in self._maps(result)):
            if self.truth is None:
                self._own.append(painted(maps, maps.scores.shape[1:] if maps else (1, 1)))
            else:
                self._count(painted(maps, self.truth[self._seen].shape), self.truth[self._seen])
            self._seen += 1

    def _maps(self, result: Result | Exception) -> list[ClassMaps | None]:
        if isinstance(result, Exception):
            return [None] * max(1, self.frames)
        if not self.frames:
            return [result.maps]
        return [result.maps_at(frame) for frame in range(self.frames)]

    def done(self) -> tuple[float, float | None]:
        self._seen = 0
        if self.truth is None:  # these are full's
            self.truth, self._own = self._own, []
            return 1.0, None
        seen = self._either > 0
        found = float((self._both[seen] / self._either[seen]).mean())
        self._both[:], self._either[:] = 0, 0
        if not self.labelled:
            return found, None
        self.full = found if self.full is None else self.full
        if not self.full:
            raise SetupError("full outlines nothing rightly, so there is no accuracy for a plan to keep")
        return min(1.0, found / self.full), found

    def _count(self, mask: Mask, truth: Mask) -> None:
        same = np.bincount(truth[mask == truth], minlength=self.classes)
        self._both += same
        for one in (mask, truth):
            self._either += np.bincount(one.ravel(), minlength=self.classes)
        self._either -= same


def painted(maps: ClassMaps | None, size: tuple[int, ...]) -> Mask:
    """Each pixel's best class at this height and width; background alone where there is no answer."""
    if maps is None:
        return np.zeros(size, np.uint8)
    scores = torch.from_numpy(maps.scores).float()[None]
    scaled = F.interpolate(scores, size=size, mode="bilinear", align_corners=False)[0]
    best: Mask = np.array(maps.classes, np.uint8)[scaled.argmax(0).numpy()]
    return best


def read_mask(data: bytes, side: int, frames: int = 1) -> list[Mask]:
    """An indexed or grey PNG as classes, at this side; a clip's frames lie one below the other."""
    image: Image.Image = Image.open(io.BytesIO(data))
    if image.size != (side, frames * side):
        image = image.resize((side, frames * side), Image.Resampling.NEAREST)
    return list(np.asarray(image).astype(np.uint8).reshape(frames, side, side))
