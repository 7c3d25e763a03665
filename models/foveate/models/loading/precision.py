"""Choose the precision by measuring: the fastest one that keeps the answers."""

import copy
import hashlib
import json
import logging
import os
import platform
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from foveate.core.plan import PRECISIONS, Precision
from foveate.models import huggingface
from foveate.models.huggingface import Pretrained, PretrainedRunner
from foveate.models.runners.image import TorchRunner
from foveate.models.weights.hub import Checkpoint
from foveate.models.zoo.heldout import HeldOut, heldout

log = logging.getLogger(__name__)

AGREEMENT = 0.995
"""Share of the held-out pictures on which a lower precision must name the same class as float32."""
GAIN = 1.15
"""A lower precision must be this much faster than float32 to be worth its rounding."""
PATIENCE_S = 180.0
"""Longest check at start-up; past it the answer is float32, and a sentence how to decide oneself."""
CHUNK = 16
Model = TypeVar("Model", Checkpoint, Pretrained)
Compared = TorchRunner | PretrainedRunner


def choose(checkpoint: Checkpoint | Pretrained, device: str) -> Precision:
    """The precision for this model on this machine; measured once and remembered on disk."""
    memory = _memory(checkpoint, device)
    remembered = _recall(memory)
    if remembered is not None:
        return remembered
    chosen = measure(checkpoint, device)
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        # Written beside and renamed: two servers that start together never read half a file.
        beside = memory.with_suffix(f".{os.getpid()}")
        beside.write_text(chosen)
        beside.replace(memory)
    except OSError:
        log.info("the measured precision could not be kept in %s", memory.parent)
    return chosen


def _recall(memory: Path) -> Precision | None:
    """What was measured before; None where nothing was, or the file holds something else."""
    try:
        text = memory.read_text()
    except (OSError, UnicodeDecodeError):
        return None
    return next((precision for precision in PRECISIONS if precision == text), None)


def measure(checkpoint: Checkpoint | Pretrained, device: str) -> Precision:
    """Compare the half precision the device computes in with float32: speed first, answers then."""
    lower: Precision = "fp16" if device == "cuda" and not torch.cuda.is_bf16_supported() else "bf16"
    reference = _made(checkpoint, "fp32", device)
    candidate = _made(checkpoint, lower, device)
    slow, fast = seconds_a_batch(reference), seconds_a_batch(candidate)
    if slow < GAIN * fast:
        log.info("%s: %s is no faster than fp32 here (%.2fx)", checkpoint.name, lower, slow / fast)
        return "fp32"
    scenes = heldout()
    if (slow + fast) * len(scenes) / _chunk(reference) > PATIENCE_S:
        log.warning(
            "%s stays in fp32: checking that %s (%.1fx faster here) keeps its answers would take too "
            "long; pass --precision %s to use it",
            checkpoint.name, lower, slow / fast, lower,
        )  # fmt: skip
        return "fp32"
    share = agreement(reference, candidate, scenes)
    log.info(
        "%s: %s is %.1fx as fast as fp32 and agrees on %.2f%%",
        checkpoint.name,
        lower,
        slow / fast,
        100 * share,
    )
    return lower if share >= AGREEMENT else "fp32"


def copy_of(checkpoint: Model) -> Model:
    """A checkpoint whose weights a runner may convert."""
    return replace(checkpoint, model=copy.deepcopy(checkpoint.model))


def _made(checkpoint: Checkpoint | Pretrained, precision: Precision, device: str) -> Compared:
    """A runner of a copy."""
    if isinstance(checkpoint, Pretrained):
        return huggingface.runner(copy_of(checkpoint), precision, device)
    return TorchRunner(copy_of(checkpoint), precision, device)


def _chunk(runner: Compared) -> int:
    """How many are run at a time: of clips, each of which is a batch of frames, one."""
    return 1 if runner.frames else min(CHUNK, runner.max_batch)


def seconds_a_batch(runner: Compared, repeats: int = 3) -> float:
    """Median seconds of a forward of a chunk of blank pictures, after one to warm up."""
    batch = runner.blank_batch(_chunk(runner))
    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        runner.run(batch, runner.full)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def agreement(reference: Compared, candidate: Compared, scenes: HeldOut) -> float:
    """Share of the scenes on which both name the same class."""
    named, renamed = top1(reference, scenes), top1(candidate, scenes)
    return float(((named == renamed) & (named >= 0)).mean())


def top1(runner: Compared, scenes: HeldOut, plan_text: str = "full") -> NDArray[np.int64]:
    """Class index the model names for each scene under a plan, in clips that stand still where it takes
    clips: (N,) int64, -1 where it failed."""
    plan, chunk = runner.card.plan(plan_text), _chunk(runner)
    pixels = list(scenes.pixels(plan.image_size))
    named: list[int] = []
    for first in range(0, len(pixels), chunk):
        media = pixels[first : first + chunk]
        if runner.frames:
            media = [np.stack([picture] * runner.frames) for picture in media]
        results = runner.run(runner.stack(media, plan), plan)
        named += [-1 if isinstance(r, Exception) else int(r.scores.argmax()) for r in results]
    return np.array(named, np.int64)


def _processor() -> str:
    """What fixes how fast a processor computes in which precision: its name and its instructions."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return f"{platform.processor()} {torch.backends.cpu.get_cpu_capability()}"
    lines = info.read_text().splitlines()
    return " ".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))


def _memory(checkpoint: Checkpoint | Pretrained, device: str) -> Path:
    """Where the choice is kept: one small file for each (weights, machine, torch) there was."""
    digest = hashlib.sha256()
    for name, tensor in sorted(checkpoint.model.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    machine = torch.cuda.get_device_name() if device == "cuda" else _processor()
    table = json.dumps(checkpoint.table(), sort_keys=True)
    digest.update(f"{table} {machine} {torch.__version__} {torch.get_num_threads()}".encode())
    digest.update(f"{AGREEMENT} {GAIN} {len(heldout())}".encode())
    root = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    return root / "foveate" / "precision" / f"{digest.hexdigest()[:24]}.txt"
