"""One batch and its forward on the device thread."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from foveate.core.errors import DeadlineExceeded
from foveate.core.outcome import Result
from foveate.engine.queue import QueueEntry
from foveate.engine.result_check import InvalidResult
from foveate.engine.runner import HasThreads, Runner
from foveate.scheduling.policy import BatchDecision

log = logging.getLogger(__name__)


@dataclass(slots=True)
class ScheduledBatch:
    """A decision of the policy that runs now or next. Its entries are no longer in the queue."""

    decision: BatchDecision[QueueEntry]
    threads: int = 1
    """Number of threads of the forward."""
    predicted_s: float = 0.0
    """Predicted seconds of the forward."""
    stacked: Any = None
    """The input of the runner, if it was stacked while another batch ran."""
    staging: asyncio.Task[None] | None = None
    """The task that stacks the input."""


BatchResults = tuple[Sequence[QueueEntry], Sequence[Result | Exception]]
"""The N entries that were part of a forward, and N results in the same order."""
Clock = Callable[[], float]


def run_batch(runner: Runner, batch: ScheduledBatch, clock: Clock) -> BatchResults:
    """Run one forward for the entries of the batch that are alive; there may be none.

    If the forward fails, each entry gets a forward of its own, so that only the faulty one fails.
    """
    entries: Sequence[QueueEntry] = batch.decision.entries
    try:
        entries, results = _run_together(runner, batch, clock)
        if len(results) != len(entries):
            raise InvalidResult(f"the model returned {len(results)} results for {len(entries)} requests")
    except Exception as error:
        log.warning("a batch of %d failed", len(entries), exc_info=True)
        if len(entries) == 1:
            return entries, [error]
        return entries, [_run_alone(runner, entry, batch, clock) for entry in entries]
    return entries, results


def _run_together(runner: Runner, batch: ScheduledBatch, clock: Clock) -> BatchResults:
    """Run one forward. Entries that ended or expired before it begins are left out, even if they are stacked.

    The deadline is compared again here: the timer of an expired entry, and this thread, may be late when the
    event loop is busy.
    """
    plan, stacked = batch.decision.plan, batch.stacked
    if isinstance(runner, HasThreads):
        runner.use(batch.threads)
    entries = batch.decision.entries
    while True:
        now = clock()
        alive = tuple(entry for entry in entries if entry.alive and entry.deadline > now)
        if not alive:
            return (), []
        if stacked is not None and len(alive) == len(entries):
            return entries, runner.run(stacked, plan)
        entries, stacked = alive, runner.stack([entry.request.media for entry in alive], plan)


def _run_alone(runner: Runner, entry: QueueEntry, batch: ScheduledBatch, clock: Clock) -> Result | Exception:
    """Run a forward for one entry of a failed batch, if the entry is alive."""
    single = ScheduledBatch(replace(batch.decision, entries=(entry,)), batch.threads)
    _, results = run_batch(runner, single, clock)
    return results[0] if results else DeadlineExceeded("the deadline passed before the answer was ready")
