"""A batch on its way through the runner, on the compute thread."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from foveate.core.errors import DeadlineExceeded, RunFailed
from foveate.core.outcome import Result
from foveate.engine.queue import QueueEntry
from foveate.engine.runner import HasThreads, Runner
from foveate.scheduling.policy import BatchDecision

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Batch:
    """A decision on its way through the runner."""

    decision: BatchDecision[QueueEntry]
    threads: int = 1
    predicted_s: float = 0.0
    stacked: Any = None
    """The runner's input, where it was put together while another batch ran."""
    staging: asyncio.Task[None] | None = None
    """What puts it together."""


BatchResults = tuple[Sequence[QueueEntry], Sequence[Result | Exception]]
"""Who had a forward, and what came of it."""
Clock = Callable[[], float]


def forward(runner: Runner, batch: Batch, clock: Clock) -> BatchResults:
    """One forward for those of the batch who still wait, of whom there may be none; if it fails as a whole,
    each gets its own."""
    entries: Sequence[QueueEntry] = batch.decision.entries
    try:
        entries, results = _together(runner, batch, clock)
        if len(results) != len(entries):
            raise RunFailed(f"the model gave {len(results)} results for {len(entries)} requests")
    except Exception as error:
        log.warning("a batch of %d failed", len(entries), exc_info=True)
        if len(entries) == 1:
            return entries, [error]
        each = [_alone(runner, entry, batch, clock) for entry in entries]
        return entries, each
    return entries, results


def _together(runner: Runner, batch: Batch, clock: Clock) -> BatchResults:
    """Rows of those who leave or expire before the forward begins, staged or not, are left out of it: the
    timer that ends an expired entry, and this thread, may be late where the event loop is busy."""
    plan, stacked = batch.decision.plan, batch.stacked
    if isinstance(runner, HasThreads):
        runner.use(batch.threads)
    entries = batch.decision.entries
    while True:
        now = clock()
        waiting = tuple(entry for entry in entries if entry.alive and entry.deadline > now)
        if not waiting:
            return (), []
        if stacked is not None and len(waiting) == len(entries):
            return entries, runner.run(stacked, plan)
        entries, stacked = waiting, runner.stack([entry.request.media for entry in waiting], plan)


def _alone(runner: Runner, entry: QueueEntry, batch: Batch, clock: Clock) -> Result | Exception:
    """After its batch failed: a forward of its own, if anybody still waits."""
    lone = Batch(replace(batch.decision, entries=(entry,)), batch.threads)
    _, results = forward(runner, lone, clock)
    return results[0] if results else DeadlineExceeded("the deadline passed before the answer was ready")
