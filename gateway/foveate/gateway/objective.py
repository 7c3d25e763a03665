"""Request headers to an objective and a plan."""

import math
import re
from collections.abc import Mapping

from foveate.core.errors import BadPlan, BadRequest
from foveate.core.model import ModelCard
from foveate.core.plan import Plan
from foveate.core.request import Objective
from foveate.core.settings import Settings, SloClass

MAX_DEADLINE_S = 3600.0
NO_PROMISE = SloClass()


def read_objective(
    headers: Mapping[str, str], arrived: float, settings: Settings, route: str = "/classify"
) -> Objective:
    """The promise asked for: what the headers say, over their SLO class, over the route's own.

    `arrived`: the monotonic time in seconds the deadline counts from.
    """
    given = _slo_class(headers.get("x-slo-class"), settings, route)
    limits = []
    if (text := headers.get("x-slo-ms")) is not None:
        limits.append(_number("x-slo-ms", text, MAX_DEADLINE_S * 1e3) / 1e3)
    if (text := headers.get("x-request-timeout-seconds")) is not None:
        limits.append(_number("x-request-timeout-seconds", text, MAX_DEADLINE_S))
    if not limits and given.deadline_ms is not None:
        limits.append(given.deadline_ms / 1e3)
    floor, priority = given.min_quality, given.priority
    if (text := headers.get("x-min-quality")) is not None:
        floor = _number("x-min-quality", text, 1.0, zero=True)
    if (text := headers.get("x-priority")) is not None:
        priority = min(_priority(text), max(settings.max_priority, given.priority))
    tenant = headers.get(settings.tenant_header.lower(), "") if settings.tenant_header else ""
    return Objective(arrived + min(limits) if limits else None, floor, priority, tenant)


def _slo_class(name: str | None, settings: Settings, route: str) -> SloClass:
    name = name or settings.default_slo_classes.get(route)
    if name is None:
        return NO_PROMISE
    if name not in settings.slo_classes:
        known = ", ".join(sorted(settings.slo_classes)) or "none"
        raise BadRequest(f"there is no SLO class {name[:60]!r}; there are {known}")
    return settings.slo_classes[name]


def _priority(text: str) -> int:
    if not re.fullmatch(r"[+-]?[0-9]", text):
        raise BadRequest("x-priority must be a whole number from -9 to 9")
    return int(text)


def _number(name: str, text: str, most: float, zero: bool = False) -> float:
    """A finite number above 0 (or from 0) and at most `most`."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (0 <= value <= most if zero else 0 < value <= most):
        raise BadRequest(f"{name} must be a number {'from 0' if zero else 'above 0'} to {most:g}")
    return value


def choose_plan(card: ModelCard, default: Plan | None, pinned: str | None, floor: float) -> Plan | None:
    """The plan to run under; None leaves it to the policy. A pinned plan below the quality floor is a
    contradiction, and refused.

    The server's own default gives way to full when it lies below the floor.
    """
    if pinned is None:
        if default is None:
            return None
        return default if (quality_of(card, default) or 0.0) >= floor else card.full
    plan = card.plan(pinned)
    quality = quality_of(card, plan)
    if floor > 0 and quality is None:
        raise BadPlan(f"the quality of {plan} was never measured, so x-min-quality cannot be promised")
    if quality is not None and quality < floor:
        raise BadPlan(f"{plan} has quality {quality:.3f}, below the x-min-quality asked for")
    return plan


def default_plan(card: ModelCard, settings: Settings) -> Plan | None:
    """What runs where no plan is pinned; None leaves it to the policy."""
    return None if settings.plan == "auto" else card.plan(settings.plan)


def quality_of(card: ModelCard, plan: Plan) -> float | None:
    """Measured quality of a plan of this model; None where nobody measured it."""
    rung = card.rung(plan)
    return None if rung is None else rung.quality
