"""Which requests run next, and under which plan. Pure: waiting requests in, decision out."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

from foveate.core.plan import Plan
from foveate.engine.queue import Entry


@dataclass(frozen=True, slots=True)
class Decision:
    """One batch: these requests, under this plan."""

    entries: tuple[Entry, ...]
    plan: Plan
    full: bool
    """No more could join it."""


def choose(waiting: Iterable[Entry], max_batch: int) -> Decision | None:
    """The oldest request, filled up with those behind it that run under the same plan.

    A batch is filled only from what waits already, so a request alone goes alone and at once.
    """
    entries = tuple(waiting)
    if not entries:
        return None
    plan = entries[0].plan
    chosen = tuple(islice((entry for entry in entries if entry.plan == plan), max_batch))
    return Decision(chosen, plan, len(chosen) == max_batch)
