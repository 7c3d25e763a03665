"""An ONNX file as an own model: input and output from the graph, the rest stated beside it or guessed."""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.core.checkpoint_options import CheckpointOptions, flag_of, text_of
from foveate.core.errors import SetupError
from foveate.core.model import InputSpec
from foveate.models.own.declaration import DEFAULT_SIZE
from foveate.models.own.onnx_graph import digest_of, metadata_labels, open_session, read_input, sentence_of
from foveate.models.own.outputs import are_probabilities
from foveate.models.weights.json_file import read_table
from foveate.models.weights.options_file import parse_options, with_labels_read

log = logging.getLogger(__name__)

GUESSED = (0.5, 0.5, 0.5)
"""Mean and deviation of channels where nothing states them, as for other weights."""
SMALLER = (6 / 7, 5 / 7, 4 / 7)
"""Sizes that are tried below full, as shares of it: 192, 160 and 128 pixels for 224."""
MULTIPLE = 32
"""Sizes that are tried are multiples of this: networks halve their input up to five times."""
STATED = ("mean", "std", "crop_pct", "crop_mode", "interpolation", "image_size", "labels")
"""Options that say something about an ONNX file."""
Pixels = NDArray[np.uint8]


class OnnxModel:
    """Classifies images with ONNX Runtime. Raises SetupError for a file that it cannot serve.

    Scores outside of 0..1 are taken for logits, and their softmax is answered.
    """

    def __init__(
        self, path: Path, options: CheckpointOptions, device: str = "auto", threads: int = 0
    ) -> None:
        """threads: of one forward; 0 takes one for each core."""
        self.path, self.name = path, path.stem
        self.description = f"{path.name} in ONNX Runtime"
        stated = _stated(path, options)
        self._session = open_session(path, device, threads)
        self._input = read_input(self._session, path)
        self.labels = stated.labels or metadata_labels(self._session)
        self._mean, self._std = stated.mean or GUESSED, stated.std or GUESSED
        crop = {key: getattr(stated, key) for key in ("crop_pct", "crop_mode", "interpolation")}
        self.input = InputSpec(**{key: value for key, value in crop.items() if value is not None})
        self._tables = [
            ((np.arange(256) / 255 - mean) / std).astype(self._input.dtype)
            for mean, std in zip(self._mean, self._std, strict=True)
        ]
        self._output = ""
        self.sizes = self._working_sizes(stated.image_size)
        self.softmax = not self._gives_probabilities()
        self.version = f"{digest_of(path)} {self._mean} {self._std}"
        self._warn_of_guesses(stated)

    def predict(self, batch: Pixels) -> NDArray[np.float32]:
        """(B, C) scores of images (B, S, S, 3) uint8."""
        inputs, size = self._prepared(batch), self._input.batch
        if size is None:
            return self._run(inputs)
        rows = [self._run(_padded(inputs[i : i + size], size)) for i in range(0, len(inputs), size)]
        return np.concatenate(rows)[: len(batch)]

    def _prepared(self, batch: Pixels) -> NDArray[Any]:
        """The batch in the type and layout of the graph, normalised unless the graph takes bytes."""
        if self._input.dtype == "uint8":
            return np.ascontiguousarray(batch.transpose(0, 3, 1, 2)) if self._input.channels_first else batch
        shape = (len(batch), 3, *batch.shape[1:3]) if self._input.channels_first else batch.shape
        inputs = np.empty(shape, self._input.dtype)
        for channel, table in enumerate(self._tables):
            target = inputs[:, channel] if self._input.channels_first else inputs[..., channel]
            target[...] = table[batch[..., channel]]  # a look-up is faster than arithmetic on each pixel
        return inputs

    def _run(self, inputs: NDArray[Any]) -> NDArray[np.float32]:
        (scores,) = self._session.run([self._output], {self._input.name: inputs})
        return np.asarray(scores, np.float32).reshape(len(scores), -1)

    def _working_sizes(self, stated: int | None) -> tuple[int, ...]:
        """Sizes with which the graph runs. Raises SetupError if it runs with none."""
        fixed = self._input.side
        if fixed is not None and stated not in (None, fixed):
            raise SetupError(f"{self.path} takes images of {fixed} pixels a side, so leave out --image-size")
        full = fixed or stated or DEFAULT_SIZE
        self._output = self._find_output(full)
        if fixed is not None:
            return (full,)
        smaller = {round(share * full / MULTIPLE) * MULTIPLE for share in SMALLER}
        return tuple(sorted({full, *(side for side in smaller if 0 < side < full and self._runs(side))}))

    def _find_output(self, side: int) -> str:
        """The first output with scores of classes. Raises SetupError, which lists the outputs."""
        names: list[str] = [output.name for output in self._session.get_outputs()]
        blank = self._prepared(_blank(self._input.batch or 1, side))
        try:
            values = self._session.run(names, {self._input.name: blank})
        except Exception as error:
            raise SetupError(
                f"{self.path} does not run on an image of {side} pixels: {sentence_of(error)}; state the "
                "size with --image-size"
            ) from error
        for name, value in zip(names, values, strict=True):
            if _are_scores(value, len(blank)):
                return name
        shapes = ", ".join(
            f"{n} {getattr(v, 'shape', type(v).__name__)}" for n, v in zip(names, values, strict=True)
        )
        raise SetupError(f"{self.path} gives no scores of classes (N, C): its outputs are {shapes}")

    def _runs(self, side: int) -> bool:
        try:
            return bool(np.isfinite(self.predict(_blank(1, side))).all())
        except Exception:
            log.debug("%s does not run at %d pixels", self.path, side, exc_info=True)
            return False

    def _gives_probabilities(self) -> bool:
        """Whether the scores of a blank image and of noise lie in 0..1."""
        side = self.sizes[-1]
        noise = np.random.default_rng(0).integers(0, 256, (2, side, side, 3), np.uint8)
        return are_probabilities(self.predict(np.concatenate([_blank(1, side), noise])))

    def _warn_of_guesses(self, stated: CheckpointOptions) -> None:
        """One warning that names all values that are not stated."""
        guesses: dict[str, object] = (
            {} if self._input.dtype == "uint8" else {"mean": self._mean, "std": self._std}
        )
        guesses |= asdict(self.input)
        if self._input.side is None:
            guesses["image_size"] = self.sizes[-1]
        guesses = {name: value for name, value in guesses.items() if name not in stated.stated()}
        if guesses:
            log.warning(
                "%s does not state how its images are prepared, so these values are guesses, and wrong ones "
                "cost accuracy: %s; state them with %s, or in %s.json beside the file",
                self.path, ", ".join(f"{name} {text_of(value)}" for name, value in guesses.items()),
                " ".join(map(flag_of, guesses)), self.path.stem,
            )  # fmt: skip


def _stated(path: Path, options: CheckpointOptions) -> CheckpointOptions:
    """The flags, then the JSON file beside the model, then labels.txt beside it. Raises SetupError."""
    options = with_labels_read(options)
    beside = path.with_suffix(".json")
    if beside.is_file():
        where = f"{beside.name} beside {path.name}"
        options = options.over(parse_options(read_table(beside), where, path.parent))
    foreign = next((name for name in options.stated() if name not in STATED), None)
    if foreign is not None:
        raise SetupError(
            f"{flag_of(foreign)} says nothing about {path}: an ONNX file holds its whole network"
        )
    labels = path.with_name("labels.txt")
    if options.labels is None and labels.is_file():
        options = with_labels_read(options.model_copy(update={"labels": str(labels)}))
    return options


def _blank(count: int, side: int) -> Pixels:
    return np.zeros((count, side, side, 3), np.uint8)


def _padded(inputs: NDArray[Any], size: int) -> NDArray[Any]:
    """The inputs, with copies of the last one up to the fixed size of a batch."""
    missing = size - len(inputs)
    return inputs if not missing else np.concatenate([inputs, np.repeat(inputs[-1:], missing, axis=0)])


def _are_scores(value: Any, count: int) -> bool:
    """(N, C) floating-point numbers, or with further axes of length 1."""
    return (
        isinstance(value, np.ndarray)
        and value.dtype.kind == "f"
        and value.ndim >= 2
        and value.shape[0] == count
        and value[0].size == value.shape[1] > 0
    )
