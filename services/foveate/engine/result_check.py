"""Checks every result of a runner once, so that no invalid value is answered as if it were true."""

import math
from typing import Any

import numpy as np

from foveate.core.errors import RunFailed
from foveate.core.model import ModelCard
from foveate.core.outcome import ClassMaps, Explanation, Result
from foveate.core.plan import Plan
from foveate.core.point_prompts import Features

_NUMBER = (float, int)
_F16_INF, _F16_MINUS_INF = 0x7C00, 0xFC00
"""Bits of infinity in float16. All larger ones, of the same sign, are NaN."""


class InvalidResult(RunFailed):
    """The model answered, but its answer is invalid. The same request may fail again."""

    title = "Invalid answer of the model"


class _Invalid(ValueError):
    """A part of a result is invalid; the message is a clause that names it."""


class ResultCheck:
    """Checks types, shapes and finiteness of the results of one model."""

    def __init__(self, card: ModelCard) -> None:
        self.model, self.frames = card.name, bool(card.frames)
        self.segments = card.task in ("segment", "clicks")
        background = 1 if self.segments else 0
        self.scores = len(card.labels) + background if card.labels else None
        """Number of scores; None for any: the model returns embeddings."""

    def explain(self, explanation: object) -> Explanation:
        """The explanation. Raises InvalidResult for another type."""
        if not isinstance(explanation, Explanation):
            raise InvalidResult(f"{self.model} gave no Explanation but a {type(explanation).__name__}")
        return explanation

    def __call__(self, result: object, *, features: bool) -> Result | Exception:
        """The result, or the error that ends its request. features: the request asked for features."""
        if isinstance(result, Exception):
            return result
        try:
            if not isinstance(result, Result):
                raise _Invalid(f"it is a {type(result).__name__} and not a Result")
            self._check(result, features)
        except _Invalid as error:
            return InvalidResult(f"{self.model} gave an invalid answer to this request: {error}")
        return result

    def _check(self, result: Result, features: bool) -> None:
        scores = _array("scores", result.scores, 1)
        if self.scores is not None and len(scores) != self.scores:
            raise _Invalid(f"scores has {len(scores)} values and not {self.scores}")
        if not is_finite(scores):
            raise _Invalid("scores holds NaN or infinity")
        _check_count("tokens", result.tokens)
        _check_count("exit_layer", result.exit_layer)
        if not isinstance(result.gflops, _NUMBER) or not 0 <= result.gflops < math.inf:
            raise _Invalid(f"gflops is {result.gflops!r:.60} and not a finite number of at least 0")
        if result.chosen is not None and not isinstance(result.chosen, Plan):
            raise _Invalid(f"chosen is a {type(result.chosen).__name__} and not a Plan")
        if self.segments or result.maps is not None or result.frame_maps:
            self._check_maps(result)
        if result.image_scores is not None:
            _floats("image_scores", result.image_scores, 1)
        if result.frames or result.over_time is not None:
            _check_frames(result)
        if features and result.features is not None:
            if not isinstance(result.features, Features):
                raise _Invalid(f"features is a {type(result.features).__name__} and not a Features")
            _floats("features.coarse", result.features.coarse, 3)
            _floats("features.fine", result.features.fine, 3)

    def _check_maps(self, result: Result) -> None:
        if self.segments and self.frames:
            if not result.frame_maps or len(result.frame_maps) != len(result.frames):
                raise _Invalid(
                    f"frame_maps has {len(result.frame_maps)} maps for {len(result.frames)} frames"
                )
        elif self.segments and result.maps is None:
            raise _Invalid("maps is missing")
        for maps in (*(() if result.maps is None else (result.maps,)), *result.frame_maps):
            if not isinstance(maps, ClassMaps):
                raise _Invalid(f"maps is a {type(maps).__name__} and not a ClassMaps")
            scores = _array("maps.scores", maps.scores, 3)
            if len(scores) != len(maps.classes):
                raise _Invalid(f"maps has {len(scores)} maps for {len(maps.classes)} classes")
            limit = math.inf if self.scores is None else self.scores
            if not all(isinstance(index, int) and 0 <= index < limit for index in maps.classes):
                raise _Invalid(f"maps.classes is {maps.classes!r:.60}, with numbers of no class")
            if not _is_below_infinity(scores):
                raise _Invalid("maps.scores holds NaN or infinity")


def _check_frames(result: Result) -> None:
    if not isinstance(result.frames, tuple) or not all(isinstance(frame, int) for frame in result.frames):
        raise _Invalid("frames is not a tuple of frame numbers")
    if result.over_time is not None:
        over_time = _floats("over_time", result.over_time, 2)
        if over_time.shape != (len(result.frames), len(result.scores)):
            raise _Invalid(
                f"over_time has the shape {over_time.shape} for {len(result.frames)} frames and "
                f"{len(result.scores)} scores"
            )


def _check_count(name: str, value: object) -> None:
    if not isinstance(value, int) or value < 0:
        raise _Invalid(f"{name} is {value!r:.60} and not a whole number of at least 0")


def _array(name: str, value: Any, axes: int) -> np.ndarray[Any, Any]:
    """The value, if it is a floating-point array with so many axes and at least one number."""
    # A masked array would pass the test of its values, and answer NaN for those that are masked.
    if not isinstance(value, np.ndarray) or isinstance(value, np.ma.MaskedArray) or value.dtype.kind != "f":
        kind = value.dtype if type(value) is np.ndarray else type(value).__name__
        raise _Invalid(f"{name} is of type {kind} and not a floating-point array")
    if value.ndim != axes or not value.size:
        raise _Invalid(f"{name} has the shape {value.shape} and not {axes} axes with numbers")
    return value


def _floats(name: str, value: Any, axes: int) -> np.ndarray[Any, Any]:
    """As `_array`, if all numbers are finite."""
    array = _array(name, value, axes)
    if not is_finite(array):
        raise _Invalid(f"{name} holds NaN or infinity")
    return array


def is_finite(array: np.ndarray[Any, Any]) -> bool:
    """Whether all numbers are finite."""
    if array.dtype == np.float16:  # numpy's own test of float16 takes ten times as long
        bits = array.view(np.uint16) & 0x7FFF
        return bool(bits.max() < _F16_INF)
    return bool(np.isfinite(array).all())


def _is_below_infinity(array: np.ndarray[Any, Any]) -> bool:
    """Whether no number is NaN or infinity. Minus infinity is the logarithm of probability 0."""
    if array.dtype == np.float16:
        return bool(array.view(np.int16).max() < _F16_INF and array.view(np.uint16).max() <= _F16_MINUS_INF)
    return bool(array.max() < math.inf)  # NaN is not less
