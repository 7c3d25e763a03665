"""Which requests run next, and under which plan. Pure: waiting requests in, decision out."""

from collections.abc import Iterable
from dataclasses import dataclass

from foveate.core.content import CONTENT_BATCHES
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
    chosen: list[Entry] = []
    most = max_batch
    for entry in waiting:
        if not chosen or entry.plan == chosen[0].plan:
            chosen.append(entry)
            most = max_batch * (CONTENT_BATCHES if chosen[0].plan.content else 1)
        if len(chosen) == most:
            break
    return Decision(tuple(chosen), chosen[0].plan, len(chosen) == most) if chosen else None
