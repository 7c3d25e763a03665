"""Choose the fastest precision that keeps the answers, by measurement."""

import copy
import hashlib
import json
import logging
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from foveate.core.default_models import PHOTO_PACKAGES
from foveate.core.outcome import Result
from foveate.core.plan import PRECISIONS, Plan, Precision
from foveate.core.unit_length import unit_length
from foveate.models import huggingface, zoo
from foveate.models.huggingface import Pretrained, PretrainedRunner
from foveate.models.loading.machine import hardware
from foveate.models.loading.measured_times import write_atomically
from foveate.models.loading.profile_store import weights_digest
from foveate.models.loading.read_model import ReadModel
from foveate.models.loading.user_folders import cache_folder
from foveate.models.opaque.checkpoint import OpaqueCheckpoint
from foveate.models.opaque.runner import OpaqueRunner
from foveate.models.runners.image import TorchRunner
from foveate.models.weights.hub import Checkpoint
from foveate.models.zoo.heldout import HeldOut, heldout

log = logging.getLogger(__name__)

AGREEMENT = 0.995
"""Share of the held-out images for which a lower precision must give the same class as float32, or an
embedding with at least SIMILARITY to that in float32."""
SIMILARITY = 0.999
"""Lowest cosine similarity at which two embeddings of one image count as the same."""
GAIN = 1.15
"""A lower precision must be this many times faster than float32."""
CHECK_LIMIT_S = 180.0
"""Longest check at start-up. If it would take longer, the model stays in float32 and the log says how to
choose a precision by hand."""
CHUNK = 16
"""Images that are run at a time."""
ModelT = TypeVar("ModelT", bound=ReadModel)
"""A model as it is read, before a runner has it."""
ComparedRunner = TorchRunner | PretrainedRunner | OpaqueRunner


def choose(checkpoint: ReadModel, device: str) -> Precision:
    """The precision for this model on this machine, measured once and cached on disk."""
    cache_file = _cache_file(checkpoint, device)
    cached = None if cache_file is None else _read_cached(cache_file)
    if cached is not None:
        return cached
    chosen = measure(checkpoint, device)
    if cache_file is None:
        log.info(
            "the measured precision is not kept: this user has no home folder, nor is XDG_CACHE_HOME set"
        )
        return chosen
    try:
        write_atomically(cache_file, chosen)
    except OSError:
        log.info("the measured precision could not be written to %s", cache_file.parent)
    return chosen


def _read_cached(cache_file: Path) -> Precision | None:
    """The cached precision; None if there is no file, or if it names no precision."""
    try:
        text = cache_file.read_text()
    except (OSError, UnicodeDecodeError):
        return None
    return next((precision for precision in PRECISIONS if precision == text), None)


def measure(checkpoint: ReadModel, device: str) -> Precision:
    """Compare the device's half precision with float32: first the speed, then the answers."""
    lower: Precision = "fp16" if device == "cuda" and not torch.cuda.is_bf16_supported() else "bf16"
    known = known_agreement(checkpoint, lower)
    if known is not None and known < AGREEMENT:
        return "fp32"
    reference = _runner_of_copy(checkpoint, "fp32", device)
    candidate = _runner_of_copy(checkpoint, lower, device)
    slow, fast = seconds_per_batch(reference), seconds_per_batch(candidate)
    if slow < GAIN * fast:
        log.info("%s: %s is no faster than fp32 here (%.2fx)", checkpoint.name, lower, slow / fast)
        return "fp32"
    if known is not None:
        return lower
    scenes = heldout()
    if (slow + fast) * len(scenes) / _chunk(reference) > CHECK_LIMIT_S:
        log.warning(
            "%s stays in fp32: checking that %s (%.1fx faster here) keeps its answers would take too "
            "long; pass --precision %s to use it",
            checkpoint.name, lower, slow / fast, lower,
        )  # fmt: skip
        return "fp32"
    log.info(
        "%s: to check once whether %s keeps its answers takes about %.0f s",
        checkpoint.name, lower, (slow + fast) * len(scenes) / _chunk(reference),
    )  # fmt: skip
    share = agreement(reference, candidate, scenes)
    log.info(
        "%s: %s is %.1fx as fast as fp32 and agrees on %.2f%%",
        checkpoint.name,
        lower,
        slow / fast,
        100 * share,
    )
    return lower if share >= AGREEMENT else "fp32"


def known_agreement(checkpoint: ReadModel, precision: Precision) -> float | None:
    """The recorded agreement of shipped weights; None for all others.

    The rounding of weights and activations decides it, and not the machine, so it was measured once
    (`python -m training.agreement`): that takes longer than the rest of a first start.
    """
    if isinstance(checkpoint, OpaqueCheckpoint) and checkpoint.name in PHOTO_PACKAGES:
        # Drawn scenes say nothing about photographs: without a record, the model stays in float32.
        return zoo.agreements(weights_digest(checkpoint)).get(precision, 0.0)
    if not isinstance(checkpoint, Checkpoint) or checkpoint.name not in zoo.names():
        return None
    return zoo.agreements(weights_digest(checkpoint)).get(precision)


def copy_of(checkpoint: ModelT) -> ModelT:
    """A checkpoint whose weights a runner may convert."""
    model: Any = copy.deepcopy(checkpoint.model)
    return replace(checkpoint, model=model)


def _runner_of_copy(checkpoint: ReadModel, precision: Precision, device: str) -> ComparedRunner:
    """A runner of a copy, so that the checkpoint keeps its float32 weights."""
    if isinstance(checkpoint, Pretrained):
        return huggingface.runner(copy_of(checkpoint), precision, device)
    if isinstance(checkpoint, OpaqueCheckpoint):
        return OpaqueRunner(copy_of(checkpoint), precision, device)
    return TorchRunner(copy_of(checkpoint), precision, device)


def _chunk(runner: ComparedRunner) -> int:
    """Inputs that are run at a time: one video, because its frames are a batch, or CHUNK images."""
    return 1 if runner.frames else min(CHUNK, runner.max_batch)


def seconds_per_batch(runner: ComparedRunner, repeats: int = 3) -> float:
    """Median seconds of a forward over a chunk of blank inputs, after one warm-up run."""
    batch = runner.blank_batch(_chunk(runner))
    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        runner.run(batch, runner.full)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def agreement(reference: ComparedRunner, candidate: ComparedRunner, scenes: HeldOut) -> float:
    """Share of the scenes, 0 to 1, to which both runners give the same class, or the same embedding."""
    if reference.card.task == "embed":
        same = cosines(embeddings(reference, scenes), embeddings(candidate, scenes)) >= SIMILARITY
        return float(same.mean())  # a cosine of NaN, for an answer that failed, is no similarity
    expected, actual = top1(reference, scenes), top1(candidate, scenes)
    return float(((expected == actual) & (expected >= 0)).mean())


def top1(runner: ComparedRunner, scenes: HeldOut, plan_text: str = "full") -> NDArray[np.int64]:
    """The top-1 class of each scene under a plan: (N,) int64, -1 for an answer that failed.

    A video model gets a video of equal frames for each scene.
    """
    results = _results(runner, scenes, runner.card.plan(plan_text))
    classes = [-1 if isinstance(r, Exception) else int(r.scores.argmax()) for r in results]
    return np.array(classes, np.int64)


def embeddings(runner: ComparedRunner, scenes: HeldOut) -> NDArray[np.float32]:
    """The embedding of each scene under the full plan: (N, D), a row of NaN for an answer that failed."""
    results = list(_results(runner, scenes, runner.full))
    width = next((len(r.scores) for r in results if isinstance(r, Result)), 1)
    failed = np.full(width, np.nan, np.float32)
    return np.stack([failed if isinstance(r, Exception) else r.scores for r in results])


def cosines(left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float32]:
    """The cosine similarity of each row of `left` to the same row of `right`: (N,)."""
    similarity: NDArray[np.float32] = (unit_length(left) * unit_length(right)).sum(1)
    return similarity


def _results(runner: ComparedRunner, scenes: HeldOut, plan: Plan) -> Iterator[Result | Exception]:
    chunk = _chunk(runner)
    pixels = list(scenes.pixels(plan.image_size))
    for first in range(0, len(pixels), chunk):
        media = pixels[first : first + chunk]
        if runner.frames:
            media = [np.stack([image] * runner.frames) for image in media]
        yield from runner.run(runner.stack(media, plan), plan)


def _cache_file(checkpoint: ReadModel, device: str) -> Path | None:
    """Where the choice is cached: one small file for each combination of weights, machine and torch.

    None if this user has no folder for it.
    """
    folder = cache_folder()
    if folder is None:
        return None
    digest = hashlib.sha256()
    for name, tensor in sorted(checkpoint.model.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    table = json.dumps(checkpoint.table(), sort_keys=True)
    digest.update(f"{table} {hardware(device)} {torch.__version__} {torch.get_num_threads()}".encode())
    digest.update(f"{AGREEMENT} {GAIN} {len(heldout())}".encode())
    if checkpoint.task == "embed":
        digest.update(str(SIMILARITY).encode())
    return folder / "precision" / f"{digest.hexdigest()[:24]}.txt"
