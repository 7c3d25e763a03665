"""The end of an answered request: count it, and collect what its response says besides the answer."""

from collections.abc import Sequence
from time import monotonic
from typing import Any

from foveate.core.outcome import Outcome
from foveate.gateway.routes.context import RequestContext
from foveate.gateway.routes.services import Meters
from foveate.gateway.schemas.response import ServedRequest


def complete(
    meters: Meters,
    context: RequestContext[Any],
    outcomes: Sequence[Outcome],
    decode_s: float,
    *,
    render_started: float | None = None,
    cache: str = "",
) -> ServedRequest:
    """Count the answer, once, and return what its response says besides the answer.

    outcomes: one for each part of the media that ran on its own; the slowest one is counted.
    decode_s: seconds of decoding. render_started: monotonic clock seconds; None if nothing was rendered.
    cache: the value of the header x-cache; empty leaves it out.
    """
    now = monotonic()
    total_s = now - context.arrived
    slowest = outcomes[0]
    if len(outcomes) > 1:
        slowest = max(outcomes, key=lambda outcome: outcome.timings.queue_s + outcome.timings.compute_s)
    timings_s = {
        "decode": decode_s,
        "queue": slowest.timings.queue_s,
        "compute": slowest.timings.compute_s,
    }
    if render_started is not None:
        timings_s["render"] = now - render_started
    timings_s["total"] = total_s
    met = context.deadline_met(total_s)
    meters[context.card.name].record(slowest, total_s, met)
    return ServedRequest(context.id, context.card, outcomes, context.pinned, met, timings_s, cache)
