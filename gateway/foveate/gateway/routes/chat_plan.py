"""The plan of a chat that names none: OpenAI's `detail` as a number of visual tokens."""

from foveate.core.errors import BadPlan
from foveate.core.model import ModelCard
from foveate.core.plan import Plan
from foveate.gateway.chat.messages import Detail
from foveate.gateway.objective import choose_plan

LOW_TOKENS = 16
"""Visual tokens of a picture with detail low, at most."""
LOW_PLAN = f"pool:{LOW_TOKENS}"
"""The plan of detail low for a model without a measured plan of so few tokens."""


def choose_chat_plan(
    card: ModelCard,
    default: Plan | None,
    pinned: str | None,
    detail: Detail,
    floors: tuple[float, float],
    has_deadline: bool,
) -> Plan | None:
    """The plan to run under; None leaves the choice to the policy.

    default, pinned: as in `choose_plan`. floors: the lowest quality of all questions together, and of the
    kind that suffers most. has_deadline: the answer or its first token must come in time: then the policy
    may go below detail high. Raises BadPlan.
    """
    min_quality, min_worst = floors
    if pinned is None and detail == "high":
        return None if has_deadline else card.full
    if pinned is None and detail == "low":
        plan = low_plan(card)
        # A floor comes before the detail: the policy chooses the cheapest plan that it allows.
        return plan if meets(card, plan, min_quality, min_worst) else None
    chosen = choose_plan(card, default, pinned, min_quality)
    if chosen is None or meets(card, chosen, 0.0, min_worst):
        return chosen
    if pinned is None:
        return card.full
    raise BadPlan(f"{chosen} keeps less of some kind of question than x-min-quality-worst {min_worst:g}")


def low_plan(card: ModelCard) -> Plan:
    """The best measured plan of at most LOW_TOKENS visual tokens, or else LOW_PLAN."""
    few = [rung for rung in card.ladder if rung.tokens <= LOW_TOKENS]
    if not few:
        return card.plan(LOW_PLAN)
    return max(few, key=lambda rung: (rung.quality or 0.0, -rung.tokens)).plan


def meets(card: ModelCard, plan: Plan, min_quality: float, min_worst: float) -> bool:
    """Whether a plan was measured to meet the floors. 0 is none."""
    rung = card.rung(plan)
    quality, worst = (rung.quality, rung.worst_quality) if rung else (None, None)
    if plan == card.full:
        return True
    return (not min_quality or (quality or 0.0) >= min_quality) and (
        not min_worst or (worst or 0.0) >= min_worst
    )
