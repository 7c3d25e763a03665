"""Batch times that were measured on this machine, kept in the cache folder for the next start."""

import hashlib
import json
import logging
import math
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from foveate.core.errors import BadPlan
from foveate.core.plan import Plan
from foveate.models.loading.machine import hardware
from foveate.models.loading.user_folders import cache_folder

log = logging.getLogger(__name__)

BatchTimes = dict[int, dict[Plan, dict[int, float]]]
"""Seconds of a batch by threads, plan and batch size."""
FORMAT = 1
"""Part of the key: a file of another format is another file."""


class MeasuredTimes:
    """The file with the times of one model, in one setting: weights, ladder, machine, threads and torch."""

    def __init__(self, weights: str, full: Plan, rungs: Sequence[Plan], device: str) -> None:
        """weights: the digest of all that decides the answers; empty keeps nothing."""
        self.full = full
        folder = cache_folder() if weights else None
        machine = hardware(device)
        cores, threads = len(os.sched_getaffinity(0)), torch.get_num_threads()
        parts = (FORMAT, weights, str(full), *map(str, rungs), machine, cores, threads, torch.__version__)
        key = hashlib.sha256(repr(parts).encode()).hexdigest()[:24]
        self.path: Path | None = None if folder is None else folder / "times" / f"{key}.json"

    def read(self) -> BatchTimes:
        """The times of an earlier start; empty if there are none, or with a warning if they are damaged."""
        if self.path is None:
            return {}
        try:
            text = self.path.read_text("utf-8")
        except UnicodeDecodeError:
            text = ""
        except OSError:
            return {}
        try:
            return _parsed(json.loads(text), self.full)
        except (ValueError, TypeError, AttributeError, BadPlan):
            log.warning("%s is damaged and ignored; the times are measured again", self.path)
            return {}

    def write(self, times: BatchTimes) -> None:
        """Store the times. Several servers may write at once; a reader never sees half a file."""
        if self.path is None:
            return
        table = {
            threads: {plan.relative_to(self.full): by_size for plan, by_size in plans.items() if by_size}
            for threads, plans in times.items()
        }
        try:
            write_atomically(self.path, json.dumps(table))
        except OSError as error:
            log.info("the measured times could not be written to %s: %s", self.path.parent, error.strerror)


def write_atomically(path: Path, text: str) -> None:
    """Write a file of the cache folder by a rename, which is atomic. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}-{threading.get_native_id()}")
    temporary.write_text(text, "utf-8")
    temporary.replace(path)


def _parsed(table: Any, full: Plan) -> BatchTimes:
    """Raises ValueError, TypeError, AttributeError or BadPlan for anything that `write` does not write."""
    times: BatchTimes = {
        int(threads): {
            Plan.parse(text, full): {int(size): float(seconds) for size, seconds in by_size.items()}
            for text, by_size in plans.items()
        }
        for threads, plans in table.items()
    }
    every = [s for plans in times.values() for by_size in plans.values() for s in by_size.items()]
    if not all(size > 0 and seconds > 0 and math.isfinite(seconds) for size, seconds in every):
        raise ValueError("sizes and seconds are above 0")
    return times
