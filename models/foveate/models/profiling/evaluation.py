"""The accuracy of a plan, and its quality relative to the full plan: top-1, or mean IoU of masks.

An `Evaluator` judges whole datasets, and an `ItemScorer` single items.
"""

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
from foveate.core.profile import Measurement
from foveate.models.profiling.dataset import DecodedDataset
from foveate.models.profiling.timing import FAILED
from foveate.models.runners.base import ModelRunner

LabelMask = NDArray[np.uint8]
"""(H, W): 0 is the background, k is the model's label k - 1."""


class Evaluator(ABC):
    """Evaluates one plan after the other; the first one is full, to which the others are compared."""

    @abstractmethod
    def update(self, results: Sequence[Result | Exception]) -> None:
        """Add the plan's results for the next items of the dataset, in order."""

    @abstractmethod
    def result(self) -> tuple[float, float | None]:
        """Finish the plan: its quality relative to full, 0 to 1, and its accuracy, None without labels.

        Raises SetupError if the accuracy of full is 0.
        """


class Top1(Evaluator):
    """Accuracy is top-1. Without labels, quality is the share of items that get full's class."""

    def __init__(self, targets: Sequence[int] | None, full: Sequence[int] = ()) -> None:
        """full: the classes that full predicted if they are known, FAILED for an answer that failed."""
        self.targets, self.full = targets, tuple(full)
        self._predicted: list[int] = []

    def update(self, results: Sequence[Result | Exception]) -> None:
        """Add the predicted classes; an exception is a wrong answer."""
        self._predicted += map(_top_class, results)

    def result(self) -> tuple[float, float | None]:
        """Finish the plan, see `Evaluator.result`."""
        predicted, self._predicted = tuple(self._predicted), []
        self.full = self.full or predicted
        if self.targets is None:
            return _share_equal(predicted, self.full), None
        accuracy = _share_equal(predicted, self.targets)
        full_accuracy = _share_equal(self.full, self.targets)
        if not full_accuracy:
            raise SetupError(
                "full gives every image a wrong class, so no plan can be compared with it: check the labels"
            )
        return min(1.0, accuracy / full_accuracy), accuracy


def _share_equal(predicted: Sequence[int], expected: Sequence[int]) -> float:
    """Share of equal classes, over the items whose expected class is not FAILED."""
    pairs = zip(predicted, expected, strict=True)
    return statistics.fmean(actual == target for actual, target in pairs if target != FAILED)


class MeanIoU(Evaluator):
    """Accuracy is intersection over union, over all items together, averaged over the classes.

    Without masks, quality is the mean IoU with the masks of full.
    """

    def __init__(
        self, truth: Sequence[LabelMask] | None, classes: int, full: float | None = None, frames: int = 0
    ) -> None:
        """truth: the mask of each image, or of each frame of each video; classes: with the background; full:
        the accuracy of full if it is known; frames: frames of each video, 0 for images.

        A frame that a plan does not compute counts with the result of the last frame before it that the
        plan computed.
        """
        self.truth, self.classes, self.full, self.frames = truth, classes, full, frames
        self.labelled = truth is not None
        self._full_masks: list[LabelMask] = []
        self._count = 0
        """Masks of the current plan so far."""
        self._intersection, self._union = (np.zeros(classes, np.int64) for _ in range(2))

    def update(self, results: Sequence[Result | Exception]) -> None:
        """Add the class maps of the next items; an exception is a mask of background alone."""
        for maps in (maps for result in results for maps in _item_maps(result, self.frames)):
            if self.truth is None:
                self._full_masks.append(mask_from_maps(maps, maps.scores.shape[1:] if maps else (1, 1)))
            else:
                truth = self.truth[self._count]
                self._add(mask_from_maps(maps, truth.shape), truth)
            self._count += 1

    def result(self) -> tuple[float, float | None]:
        """Finish the plan, see `Evaluator.result`."""
        self._count = 0
        if self.truth is None:  # the first plan is full: its masks are the truth for the others
            self.truth, self._full_masks = self._full_masks, []
            return 1.0, None
        present = self._union > 0
        accuracy = float((self._intersection[present] / self._union[present]).mean())
        self._intersection[:], self._union[:] = 0, 0
        if not self.labelled:
            return accuracy, None
        self.full = accuracy if self.full is None else self.full
        if not self.full:
            raise SetupError(
                "no mask of full overlaps the true one, so no plan can be compared with it: check the masks"
            )
        return min(1.0, accuracy / self.full), accuracy

    def _add(self, mask: LabelMask, truth: LabelMask) -> None:
        """Count the pixels of each class in the intersection and in the union of two masks."""
        equal = np.bincount(truth[mask == truth], minlength=self.classes)
        self._intersection += equal
        for either in (mask, truth):
            self._union += np.bincount(either.ravel(), minlength=self.classes)
        self._union -= equal


def mask_from_maps(maps: ClassMaps | None, size: tuple[int, ...]) -> LabelMask:
    """The best class of each pixel at this (height, width); background alone for None."""
    if maps is None:
        return np.zeros(size, np.uint8)
    scores = torch.from_numpy(maps.scores).float()[None]
    scaled = F.interpolate(scores, size=size, mode="bilinear", align_corners=False)[0]
    mask: LabelMask = np.array(maps.classes, np.uint8)[scaled.argmax(0).numpy()]
    return mask


def read_masks(data: bytes, side: int, frames: int = 1) -> list[LabelMask]:
    """Read an indexed or grey PNG as `frames` masks of (side, side), which lie one below the other."""
    image: Image.Image = Image.open(io.BytesIO(data))
    if image.size != (side, frames * side):
        image = image.resize((side, frames * side), Image.Resampling.NEAREST)
    return list(np.asarray(image).astype(np.uint8).reshape(frames, side, side))


def evaluator_for(
    runner: ModelRunner,
    images: DecodedDataset,
    measured: Sequence[Measurement] = (),
    full_classes: Sequence[int] = (),
) -> Evaluator:
    """The evaluator for the runner's task.

    measured: the plans that are measured already, full first; full_classes: the classes that full
    predicted, if they are known.
    """
    dataset = images.dataset
    if runner.card.task == "classify":
        return Top1(dataset.targets, full_classes)
    side, classes, frames = runner.full.image_size, len(runner.card.labels) + 1, runner.card.frames
    if dataset.masks is not None:
        masks = (read_masks(dataset.encoded_mask(index), side, frames or 1) for index in range(len(images)))
        truth = [mask for item in masks for mask in item]
        return MeanIoU(truth, classes, measured[0].accuracy if measured else None, frames)
    evaluator = MeanIoU(None, classes, frames=frames)
    if measured:  # the partial file does not hold full's masks, so they are computed again
        for chunk in images.chunks(runner.max_batch):
            evaluator.update(runner.run(runner.stack(chunk, runner.full), runner.full))
        evaluator.result()
    return evaluator


class ItemScorer:
    """Scores single items of a dataset, 0 to 1: whether the class is right, or the mean IoU of the masks.

    Without labels, the answers of full are right: `learn` has to see them first.
    """

    def __init__(self, runner: ModelRunner, images: DecodedDataset) -> None:
        self._dataset, self._task, self._frames = images.dataset, runner.card.task, runner.card.frames
        self._side = runner.full.image_size
        self._classes: dict[int, int] = {}
        self._masks: dict[int, list[LabelMask]] = {}

    def unknown(self, indices: Sequence[int]) -> list[int]:
        """The items among these whose right answer is not known yet."""
        known = self._classes if self._task == "classify" else self._masks
        return [index for index in indices if index not in known]

    def learn(self, indices: Sequence[int], results: Sequence[Result | Exception]) -> None:
        """Take over the right answers of these items: the labels, or else the results of full."""
        for index, result in zip(indices, results, strict=True):
            if self._task == "classify":
                targets = self._dataset.targets
                self._classes[index] = _top_class(result) if targets is None else targets[index]
            elif self._dataset.masks is not None:
                data = self._dataset.encoded_mask(index)
                self._masks[index] = read_masks(data, self._side, self._frames or 1)
            else:
                maps = _item_maps(result, self._frames)
                self._masks[index] = [mask_from_maps(m, m.scores.shape[1:] if m else (1, 1)) for m in maps]

    def scores(self, indices: Sequence[int], results: Sequence[Result | Exception]) -> list[float]:
        """The score of each result. An exception is wrong; where full failed, all answers are right."""
        return [self._score(index, result) for index, result in zip(indices, results, strict=True)]

    def _score(self, index: int, result: Result | Exception) -> float:
        if self._task == "classify":
            return float(self._classes[index] in (FAILED, _top_class(result)))
        pairs = zip(_item_maps(result, self._frames), self._masks[index], strict=True)
        return statistics.fmean(_mask_iou(mask_from_maps(maps, t.shape), t) for maps, t in pairs)


def _top_class(result: Result | Exception) -> int:
    """The class index of a result, or FAILED."""
    return FAILED if isinstance(result, Exception) else int(result.scores.argmax())


def _item_maps(result: Result | Exception, frames: int) -> list[ClassMaps | None]:
    """The class maps of an image, or of each frame of a video; None for those of a failure."""
    if isinstance(result, Exception):
        return [None] * max(1, frames)
    if not frames:
        return [result.maps]
    return [result.maps_at(frame) for frame in range(frames)]


def _mask_iou(mask: LabelMask, truth: LabelMask) -> float:
    """Intersection over union of one mask, averaged over the classes in it and in the true one."""
    present = np.union1d(mask, truth).tolist()
    return statistics.fmean(
        float(((mask == k) & (truth == k)).sum() / ((mask == k) | (truth == k)).sum()) for k in present
    )
