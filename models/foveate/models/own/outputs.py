"""What an own model's `predict` returned, as one result or one error for each image."""

from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.core.errors import RunFailed
from foveate.core.outcome import Result

Scores = NDArray[np.float32]
TOKENS, EXIT_LAYER, GFLOPS = 1, 1, 0.0
"""What a result says about compute that is not known."""


class OutputReader:
    """Reads the outputs of one model."""

    def __init__(self, name: str, labels: Sequence[str], softmax: bool) -> None:
        """labels: empty if they are not known yet; then only scores can be read."""
        self.name, self.labels, self.softmax = name, tuple(labels), softmax
        self._index = {label: index for index, label in reversed(list(enumerate(self.labels)))}

    def read(self, outputs: Any, count: int) -> list[Result | Exception]:
        """One result or error for each of `count` images. Raises RunFailed for outputs of another shape."""
        return [self._result(item) for item in self.items(outputs, count)]

    def items(self, outputs: Any, count: int) -> Sequence[Any]:
        """The outputs of the single images. Raises RunFailed for outputs of another shape."""
        outputs = as_array(outputs)
        if isinstance(outputs, np.ndarray):
            shape = f"an array of shape {outputs.shape}"
            if (
                outputs.ndim == 0
                or len(outputs) != count
                or (outputs.ndim == 1 and outputs.dtype.kind == "f")
            ):
                raise self._unexpected(shape, count)
            if outputs.ndim > 2:
                raise self._unexpected(f"{shape}, which may be features", count)
            return list(outputs)
        kind = f"a {type(outputs).__name__}"
        if isinstance(outputs, Mapping):
            raise self._unexpected(f"{kind}; return its .logits" if "logits" in outputs else kind, count)
        if not isinstance(outputs, Sequence) or isinstance(outputs, str | bytes):
            raise self._unexpected(kind, count)
        if len(outputs) != count:
            raise self._unexpected(f"{kind} of {len(outputs)}", count)
        return outputs

    def _unexpected(self, actual: str, count: int) -> RunFailed:
        return RunFailed(
            f"{self.name}.predict must return ({count}, C) scores, or a list of {count} items, for a batch "
            f"of {count}, not {actual}"
        )

    def _result(self, item: Any) -> Result | Exception:
        if isinstance(item, Result | Exception):
            return item
        try:
            scores = self._scores(item)
        except ValueError as error:
            return RunFailed(f"{self.name}.predict returned {error} for this image")
        if not np.isfinite(scores).all():
            return RunFailed("the model's scores for this image are not finite")
        return Result(scores, TOKENS, EXIT_LAYER, GFLOPS)

    def _scores(self, item: Any) -> Scores:
        """(C,) scores. Raises ValueError, a clause that names what the item is."""
        if isinstance(item, str):
            return self._from_table({item: 1.0})
        if isinstance(item, Mapping):
            return self._from_table(item)
        item = as_array(item)
        if isinstance(item, Integral) and not isinstance(item, bool | np.bool_):
            return self._from_table({self._label(int(item)): 1.0})
        scores = numbers(item)
        if scores is None or scores.ndim != 1:
            shape = "" if scores is None else f" of shape {scores.shape}"
            raise ValueError(f"a {type(item).__name__}{shape} in place of scores or a label")
        if self.labels and len(scores) != len(self.labels):
            raise ValueError(f"{len(scores)} scores in place of {len(self.labels)}")
        return _softmax(scores) if self.softmax else scores

    def _label(self, index: int) -> str:
        if not 0 <= index < len(self.labels):
            raise ValueError(f"the class index {index} with {len(self.labels)} labels")
        return self.labels[index]

    def _from_table(self, table: Mapping[Any, Any]) -> Scores:
        scores = np.zeros(len(self.labels), np.float32)
        for label, score in table.items():
            score = as_array(score)
            if label not in self._index:
                raise ValueError(f"{label!r:.40}, which is not in labels,")
            if not isinstance(score, Real) and not (isinstance(score, np.ndarray) and score.size == 1):
                raise ValueError(f"a {type(score).__name__} as the score of {label!r:.40}")
            scores[self._index[label]] = float(score)
        return scores


def as_array(value: Any) -> Any:
    """A torch tensor, or another array, as a NumPy array; any other value as it is."""
    if hasattr(value, "detach"):  # torch is not imported for the sake of this test
        value = value.detach().cpu()
        value = value.float().numpy() if value.is_floating_point() else value.numpy()
    elif not isinstance(value, np.ndarray | np.generic) and hasattr(value, "__array__"):
        value = np.asarray(value)
    return value


def numbers(value: Any) -> Scores | None:
    """An array or a list of numbers as float32; None for anything else, and for arrays with a mask."""
    if isinstance(value, np.ma.MaskedArray):
        return None
    try:
        array = np.asarray(value)
    except ValueError:  # rows of different lengths
        return None
    if array.dtype == object:  # a list of tensors with one value each
        try:
            array = np.asarray([float(each) for each in value])
        except (TypeError, ValueError):
            return None
    if array.dtype.kind not in "fiu" or not array.size:
        return None
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and refused as such
        return np.asarray(array, np.float32)


def are_probabilities(scores: Scores) -> bool:
    """Whether scores lie in 0..1."""
    return bool(((scores >= -1e-4) & (scores <= 1 + 1e-4)).all())


def _softmax(scores: Scores) -> Scores:
    exponentials = np.exp(scores - scores.max())
    return np.asarray(exponentials / exponentials.sum(), np.float32)
