"""The score of a plan on single items, by which plans are compared on few of them."""

import statistics
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from foveate.core.outcome import Result
from foveate.core.unit_length import unit_length
from foveate.models.profiling.dataset import DecodedDataset
from foveate.models.profiling.evaluation import LabelMask, item_maps, mask_from_maps, read_masks, top_class
from foveate.models.profiling.timing import FAILED
from foveate.models.runners.base import ModelRunner

NEIGHBOURS = 128
"""Images among which nearest neighbours are searched: the same ones in every stage of a screening, so that
scores stay comparable."""


class ItemScorer:
    """Scores single items of a dataset, 0 to 1: whether the class is right, or the mean IoU of the masks.

    For an embedding, whether its nearest neighbour is that of full's embedding. Without labels, the answers
    of full are right: `learn` has to see them first.
    """

    def __init__(self, runner: ModelRunner, images: DecodedDataset) -> None:
        self._dataset, self._task, self._frames = images.dataset, runner.card.task, runner.card.frames
        self._side = runner.full.image_size
        self._classes: dict[int, int] = {}
        self._masks: dict[int, list[LabelMask]] = {}
        self._embeddings: dict[int, NDArray[np.float32] | None] = {}
        """Of full, scaled to length 1; None where it failed."""
        # The items of a folder are sorted, so neighbours are taken from all of it.
        spread = np.linspace(0, len(images) - 1, min(NEIGHBOURS, len(images)))
        self._gallery = spread.round().astype(int).tolist() if self._task == "embed" else []

    def unknown(self, indices: Sequence[int]) -> list[int]:
        """The items whose right answer has to be learned before these can be scored."""
        if self._task == "embed":
            return [i for i in dict.fromkeys((*self._gallery, *indices)) if i not in self._embeddings]
        known = self._classes if self._task == "classify" else self._masks
        return [index for index in indices if index not in known]

    def learn(self, indices: Sequence[int], results: Sequence[Result | Exception]) -> None:
        """Take over the right answers of these items: the labels, or else the results of full."""
        for index, result in zip(indices, results, strict=True):
            if self._task == "classify":
                targets = self._dataset.targets
                self._classes[index] = top_class(result) if targets is None else targets[index]
            elif self._task == "embed":
                self._embeddings[index] = _embedding(result)
            elif self._dataset.masks is not None:
                data = self._dataset.encoded_mask(index)
                self._masks[index] = read_masks(data, self._side, self._frames or 1)
            else:
                maps = item_maps(result, self._frames)
                self._masks[index] = [mask_from_maps(m, m.scores.shape[1:] if m else (1, 1)) for m in maps]

    def scores(self, indices: Sequence[int], results: Sequence[Result | Exception]) -> list[float]:
        """The score of each result. An exception is wrong; where full failed, all answers are right."""
        return [self._score(index, result) for index, result in zip(indices, results, strict=True)]

    def _score(self, index: int, result: Result | Exception) -> float:
        if self._task == "classify":
            return float(self._classes[index] in (FAILED, top_class(result)))
        if self._task == "embed":
            return self._neighbour_score(index, _embedding(result))
        pairs = zip(item_maps(result, self._frames), self._masks[index], strict=True)
        return statistics.fmean(_mask_iou(mask_from_maps(maps, t.shape), t) for maps, t in pairs)

    def _neighbour_score(self, index: int, embedding: NDArray[np.float32] | None) -> float:
        """Whether an embedding finds the neighbour of full's embedding of this item."""
        own = self._embeddings[index]
        others = [self._embeddings[other] for other in self._gallery if other != index]
        valid = [other for other in others if other is not None]
        if own is None or not valid:
            return 1.0
        if embedding is None:
            return 0.0
        gallery = np.stack(valid)
        return float((gallery @ embedding).argmax() == (gallery @ own).argmax())


def _embedding(result: Result | Exception) -> NDArray[np.float32] | None:
    """The embedding of a result, scaled to length 1; None for a failure."""
    if isinstance(result, Exception):
        return None
    return unit_length(result.scores)


def _mask_iou(mask: LabelMask, truth: LabelMask) -> float:
    """Intersection over union of one mask, averaged over the classes in it and in the true one."""
    present = np.union1d(mask, truth).tolist()
    return statistics.fmean(
        float(((mask == k) & (truth == k)).sum() / ((mask == k) | (truth == k)).sum()) for k in present
    )
