"""Request headers to an objective and a plan."""

import math
from collections.abc import Mapping

from foveate.core.errors import BadPlan, BadRequest
from foveate.core.model import ModelCard
from foveate.core.plan import Plan
from foveate.core.request import Objective

MAX_DEADLINE_S = 3600.0


def read_objective(headers: Mapping[str, str], arrived: float) -> Objective:
    """The promise asked for; `arrived` is the monotonic time in seconds the deadline counts from."""
    limits = []
    if (text := headers.get("x-slo-ms")) is not None:
        limits.append(_number("x-slo-ms", text, MAX_DEADLINE_S * 1e3) / 1e3)
    if (text := headers.get("x-request-timeout-seconds")) is not None:
        limits.append(_number("x-request-timeout-seconds", text, MAX_DEADLINE_S))
    floor = 0.0
    if (text := headers.get("x-min-quality")) is not None:
        floor = _number("x-min-quality", text, 1.0, zero=True)
    return Objective(arrived + min(limits) if limits else None, floor)


def _number(name: str, text: str, most: float, zero: bool = False) -> float:
    """A finite number above 0 (or from 0) and at most `most`."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (0 <= value <= most if zero else 0 < value <= most):
        raise BadRequest(f"{name} must be a number {'from 0' if zero else 'above 0'} to {most:g}")
    return value


def choose_plan(card: ModelCard, default: Plan, pinned: str | None, floor: float) -> Plan:
    """The plan to run under. A pinned plan below the quality floor is a contradiction, and refused.

    The server's own default gives way to full when it lies below the floor.
    """
    if pinned is None:
        return default if (quality_of(card, default) or 0.0) >= floor else card.full
    plan = card.plan(pinned)
    quality = quality_of(card, plan)
    if floor > 0 and quality is None:
        raise BadPlan(f"the quality of {plan} was never measured, so x-min-quality cannot be promised")
    if quality is not None and quality < floor:
        raise BadPlan(f"{plan} has quality {quality:.3f}, below the x-min-quality asked for")
    return plan


def quality_of(card: ModelCard, plan: Plan) -> float | None:
    """Measured quality of a plan of this model; None where nobody measured it."""
    rung = card.rung(plan)
    return None if rung is None else rung.quality
