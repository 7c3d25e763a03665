"""Requests of an application that embeds an engine: from a deadline in seconds from now to a `Request`."""

import itertools
import math
from typing import Any, TypedDict

from foveate.core.errors import BadRequest
from foveate.core.model import ModelCard
from foveate.core.plan import Plan
from foveate.core.request import Objective, Request

_numbers = itertools.count(1)


class SubmitOptions(TypedDict, total=False):
    """What `Engine.submit` takes beside the media. All of it is optional."""

    deadline_s: float | None
    """Seconds from now in which the outcome must be there; None for no deadline."""
    min_quality: float
    """Lowest acceptable quality of the plan, 0 to 1."""
    plan: Plan | str | None
    """Pins a plan; None leaves the choice to the policy."""
    priority: int
    """As in `Objective`."""
    tenant: str
    """As in `Objective`."""
    explain: bool
    """Whether the outcome says which patches were kept, where the model can say it."""


def embedded_request(card: ModelCard, media: Any, now: float, options: SubmitOptions) -> Request:
    """A request for the model of this card. now: clock seconds, from which `deadline_s` counts.

    Raises BadRequest for values out of range, and BadPlan for the text of a plan of another model.
    """
    deadline_s, min_quality = options.get("deadline_s"), options.get("min_quality", 0.0)
    if deadline_s is not None and not deadline_s > 0:  # NaN fails too
        raise BadRequest(f"deadline_s must be above 0, in seconds from now, not {deadline_s}")
    if not 0 <= min_quality <= 1:
        raise BadRequest(f"min_quality must be a number from 0 to 1, not {min_quality}")
    deadline = None if deadline_s is None or math.isinf(deadline_s) else now + deadline_s
    plan = options.get("plan")
    return Request(
        str(next(_numbers)),
        card.name,
        media,
        media_bytes(media),
        task=card.task,
        objective=Objective(deadline, min_quality, options.get("priority", 0), options.get("tenant", "")),
        plan=card.plan(plan) if isinstance(plan, str) else plan,
        explain=options.get("explain", False),
    )


def media_bytes(media: Any) -> int:
    """Bytes of memory that media hold: of an array, of bytes, or of the items of a list; 0 if unknown."""
    size = getattr(media, "nbytes", None)
    if isinstance(size, int):
        return size
    if isinstance(media, bytes | bytearray):
        return len(media)
    return sum(map(media_bytes, media)) if isinstance(media, list | tuple) else 0
