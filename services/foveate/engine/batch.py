"""A batch on its way through the runner, on the compute thread."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from foveate.core.errors import RunFailed
from foveate.core.outcome import Result
from foveate.engine.policy import Decision
from foveate.engine.queue import Entry
from foveate.engine.runner import Runner, Threaded

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Batch:
    """A decision on its way through the runner."""

    decision: Decision[Entry]
    threads: int = 1
    stacked: Any = None
    """The runner's input, where it was put together while another batch ran."""


def forward(runner: Runner, entries: Sequence[Entry], batch: Batch) -> Sequence[Result | Exception]:
    """One forward for those of the batch who still wait; if it fails as a whole, each gets its own."""
    plan, stacked = batch.decision.plan, batch.stacked
    try:
        if isinstance(runner, Threaded):
            runner.use(batch.threads)
        if stacked is None:
            stacked = runner.stack([entry.request.media for entry in entries], plan)
        results = runner.run(stacked, plan)
        if len(results) != len(entries):
            raise RunFailed(f"the model gave {len(results)} results for {len(entries)} requests")
        return results
    except Exception as error:
        log.warning("a batch of %d failed", len(entries), exc_info=True)
        if len(entries) == 1:
            return [error]
        return [_alone(runner, entry, replace(batch, stacked=None)) for entry in entries]


def _alone(runner: Runner, entry: Entry, batch: Batch) -> Result | Exception:
    """After its batch failed: a forward of its own, if anybody still waits."""
    if not entry.alive:
        return RunFailed("nobody waits for this request")
    return forward(runner, [entry], batch)[0]
