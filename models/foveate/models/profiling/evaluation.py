"""The accuracy of a plan, and its quality relative to full: top-1, mean IoU, or equal nearest neighbours."""

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
from foveate.core.unit_length import unit_length
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
        self._predicted += map(top_class, results)

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


NEIGHBOUR_CHUNK = 1024
"""Images whose similarities to all others are in memory at one time."""


class NeighbourAgreement(Evaluator):
    """Quality is recall@1 of embeddings: the share of images with the same nearest neighbour as under full.

    The neighbour is searched among full's embeddings of all other images, by cosine similarity. So the image
    is the query, embedded under the plan, and the index was made under full ("asymmetric" retrieval): plans
    are compared as a server mixes them. There is no accuracy.
    """

    def __init__(self) -> None:
        self._embeddings: list[NDArray[np.float32] | None] = []
        self._gallery = np.empty((0, 0), np.float32)
        self._rows = np.empty(0, np.int64)
        """The image of each row of the gallery: those whose embedding under full is valid."""
        self._nearest = np.empty(0, np.int64)
        """For each row of the gallery, the row of its nearest neighbour."""

    def update(self, results: Sequence[Result | Exception]) -> None:
        """Add embeddings; an exception finds no neighbour."""
        self._embeddings += [None if isinstance(result, Exception) else result.scores for result in results]

    def result(self) -> tuple[float, float | None]:
        """Finish the plan, see `Evaluator.result`. Raises SetupError for fewer than three images."""
        embeddings, self._embeddings = self._embeddings, []
        if not len(self._rows):
            self._index(embeddings)
        queries = [embeddings[row] for row in self._rows.tolist()]
        valid = [number for number, query in enumerate(queries) if query is not None]
        rows = _unit([query for query in queries if query is not None])
        same = self._search(rows, np.array(valid, np.int64)) == self._nearest[valid]
        return float(same.sum() / len(self._rows)), None

    def _index(self, embeddings: Sequence[NDArray[np.float32] | None]) -> None:
        """Keep full's embeddings, and the nearest neighbour of each."""
        valid = [number for number, embedding in enumerate(embeddings) if embedding is not None]
        if len(valid) < 3:
            raise SetupError(
                f"full embeds {len(valid)} image(s), and nearest neighbours take at least 3: pass more images"
            )
        self._rows = np.array(valid, np.int64)
        self._gallery = _unit([embedding for embedding in embeddings if embedding is not None])
        self._nearest = self._search(self._gallery, np.arange(len(valid)))

    def _search(self, queries: NDArray[np.float32], own: NDArray[np.int64]) -> NDArray[np.int64]:
        """The gallery's row that is nearest to each query (N, D), its own row left out: (N,)."""
        nearest = np.empty(len(queries), np.int64)
        for first in range(0, len(queries), NEIGHBOUR_CHUNK):
            part = slice(first, first + NEIGHBOUR_CHUNK)
            similarity = queries[part] @ self._gallery.T
            similarity[np.arange(len(similarity)), own[part]] = -np.inf
            nearest[part] = similarity.argmax(1)
        return nearest


def _unit(rows: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The rows, stacked and scaled to length 1."""
    return unit_length(np.stack(rows) if rows else np.empty((0, 1), np.float32))


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
        for maps in (maps for result in results for maps in item_maps(result, self.frames)):
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
    if runner.card.task == "embed":
        return _after_full(NeighbourAgreement(), runner, images, bool(measured))
    side, classes, frames = runner.full.image_size, len(runner.card.labels) + 1, runner.card.frames
    if dataset.masks is not None:
        masks = (read_masks(dataset.encoded_mask(index), side, frames or 1) for index in range(len(images)))
        truth = [mask for item in masks for mask in item]
        return MeanIoU(truth, classes, measured[0].accuracy if measured else None, frames)
    return _after_full(MeanIoU(None, classes, frames=frames), runner, images, bool(measured))


def _after_full(
    evaluator: Evaluator, runner: ModelRunner, images: DecodedDataset, is_measured: bool
) -> Evaluator:
    """An evaluator that compares with the answers of full. If full is measured already, it runs again.

    The partial file does not hold its masks or embeddings.
    """
    if is_measured:
        for chunk in images.chunks(runner.max_batch):
            evaluator.update(runner.run(runner.stack(chunk, runner.full), runner.full))
        evaluator.result()
    return evaluator


def top_class(result: Result | Exception) -> int:
    """The class index of a result, or FAILED."""
    return FAILED if isinstance(result, Exception) else int(result.scores.argmax())


def item_maps(result: Result | Exception, frames: int) -> list[ClassMaps | None]:
    """The class maps of an image, or of each frame of a video; None for those of a failure."""
    if isinstance(result, Exception):
        return [None] * max(1, frames)
    if not frames:
        return [result.maps]
    return [result.maps_at(frame) for frame in range(frames)]
