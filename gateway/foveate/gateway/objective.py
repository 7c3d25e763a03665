"""Read the objective and the plan of a request from its headers."""

import math
import re
from collections.abc import Mapping, Sequence

from foveate.core.errors import BadPlan, BadRequest
from foveate.core.model import ModelCard
from foveate.core.nearest_names import nearest
from foveate.core.plan import Plan
from foveate.core.request import Objective
from foveate.core.settings import Settings, SloClass

MAX_DEADLINE_S = 3600.0
NO_SLO_CLASS = SloClass()
OBJECTIVE_HEADERS = ("x-slo-ms", "x-request-timeout-seconds", "x-min-quality", "x-slo-class", "x-priority")
OWN_HEADERS = (*OBJECTIVE_HEADERS, "x-plan", "x-request-id")
"""The headers that only this server defines."""
AUTO = "auto"
"""The value of the setting `plan` that leaves the choice to the policy."""
_OWN_STARTS = ("x-slo", "x-min", "x-ttft", "x-foveate", "x_")
_OWN_NAME = re.compile("x-(slo|min|ttft|foveate)(-.*)?")


def check_headers(
    pairs: Sequence[tuple[bytes, bytes]],
    headers: Mapping[str, str],
    tenant_header: str,
    own: Sequence[str] = OWN_HEADERS,
) -> None:
    """Refuse headers that look like the server's own but are not, and own headers with two values.

    Unknown headers are ignored (RFC 9110, section 5.1), except for names that can only be misspelt ones.
    pairs: as they were sent. headers: the last value of each name. tenant_header: a name of the operator's.
    own: the headers of the route. Raises BadRequest.
    """
    for name in headers:
        # Almost all names stop at this first test.
        if name.startswith(_OWN_STARTS) and name not in own and name != tenant_header.lower():
            _check_name(name, own)
    if len(headers) < len(pairs):
        for name in (*own, "content-type"):
            if len({value for other, value in pairs if other.decode("latin-1") == name}) > 1:
                raise BadRequest(f"the header {name} is sent twice, with different values")


def _check_name(name: str, own: Sequence[str]) -> None:
    plain = name.replace("_", "-")
    if plain in own or _OWN_NAME.fullmatch(plain):
        near = nearest(plain.replace("-foveate", ""), own, 1)
        hint = f"did you mean {near[0]}?" if near else f"the server reads {', '.join(own)}"
        raise BadRequest(f"there is no header {name[:60]}; {hint}")


def read_objective(
    headers: Mapping[str, str], arrived: float, settings: Settings, route: str = "/classify"
) -> Objective:
    """The objective of a request. Headers override the SLO class, which overrides the route's default class.

    arrived: monotonic time in seconds from which the deadline counts. Raises BadRequest.
    """
    slo_class = _slo_class(headers.get("x-slo-class"), settings, route)
    deadlines_s = []
    if (text := headers.get("x-slo-ms")) is not None:
        deadlines_s.append(parse_number("x-slo-ms", text, MAX_DEADLINE_S * 1e3) / 1e3)
    if (text := headers.get("x-request-timeout-seconds")) is not None:
        deadlines_s.append(parse_number("x-request-timeout-seconds", text, MAX_DEADLINE_S))
    if not deadlines_s and slo_class.deadline_ms is not None:
        deadlines_s.append(slo_class.deadline_ms / 1e3)
    min_quality, priority = slo_class.min_quality, slo_class.priority
    if (text := headers.get("x-min-quality")) is not None:
        min_quality = parse_number("x-min-quality", text, 1.0, allow_zero=True)
    if (text := headers.get("x-priority")) is not None:
        priority = min(_priority(text), max(settings.max_priority, slo_class.priority))
    tenant = headers.get(settings.tenant_header.lower(), "") if settings.tenant_header else ""
    return Objective(arrived + min(deadlines_s) if deadlines_s else None, min_quality, priority, tenant)


def _slo_class(name: str | None, settings: Settings, route: str) -> SloClass:
    name = name or settings.default_slo_classes.get(route)
    if name is None:
        return NO_SLO_CLASS
    if name not in settings.slo_classes:
        known = ", ".join(sorted(settings.slo_classes)) or "none"
        raise BadRequest(f"x-slo-class {name[:60]!r} is unknown; this server has: {known}")
    return settings.slo_classes[name]


def _priority(text: str) -> int:
    if not re.fullmatch(r"[+-]?[0-9]", text):
        raise BadRequest(f"x-priority must be a whole number from -9 to 9, not {text[:20]!r}")
    return int(text)


def parse_number(name: str, text: str, maximum: float, allow_zero: bool = False) -> float:
    """A finite number above 0, or from 0, and at most `maximum`. Raises BadRequest."""
    try:
        value = math.nan if "_" in text else float(text)  # Python takes 1_000
    except ValueError:
        value = math.nan
    if not (0 <= value <= maximum if allow_zero else 0 < value <= maximum):
        minimum = "from 0" if allow_zero else "above 0"
        raise BadRequest(f"{name} must be a number {minimum} to {maximum:g}, not {text[:20]!r}")
    return value


def choose_plan(card: ModelCard, default: Plan | None, pinned: str | None, min_quality: float) -> Plan | None:
    """The plan to run under; None leaves the choice to the policy.

    default: the server's plan for this model; the full plan replaces it where it is below `min_quality`.
    pinned: text of the plan that the client chose. Raises BadPlan, also where it contradicts
    `min_quality`.
    """
    if pinned is None:
        if default is None:
            return None
        return default if (card.quality_of(default) or 0.0) >= min_quality else card.full
    if pinned.strip() == AUTO:
        raise BadPlan("auto is not a plan; send no plan, and the server chooses one")
    plan = card.plan(pinned)
    quality = card.quality_of(plan)
    if min_quality > 0 and quality is None:
        raise BadPlan(f"the quality of {plan} was never measured; remove x-min-quality or x-plan")
    if quality is not None and quality < min_quality:
        raise BadPlan(f"{plan} has quality {quality:.3f}, below x-min-quality {min_quality:g}")
    return plan


def default_plan(card: ModelCard, settings: Settings) -> Plan | None:
    """The server's plan for requests that pin none; None leaves the choice to the policy."""
    return None if settings.plan == AUTO else card.plan(settings.plan)
