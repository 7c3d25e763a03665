"""How objectives become turns, cards become choices, and refusals become sentences."""

from dataclasses import dataclass
from typing import Any

from foveate.core.errors import TooLate
from foveate.core.model import ModelCard, Rung
from foveate.core.request import Objective
from foveate.scheduling.policy import Refusal


@dataclass(frozen=True, slots=True)
class Terms:
    """How objectives become turns."""

    default_deadline_s: float = 1.0
    """A request without a deadline is served as if it had one so far off, but never given up."""
    priority_boost_s: float = 1.0
    """By how much a step of priority brings a turn forward. A turn stays where it is, so that nobody
    is overtaken for ever."""

    def virtual_deadline(self, objective: Objective, now: float) -> float:
        """When the turn of a request that comes now is."""
        deadline = now + self.default_deadline_s if objective.deadline is None else objective.deadline
        return deadline - self.priority_boost_s * objective.priority


def too_late(refusal: Refusal[Any], left_s: float) -> TooLate:
    """What to tell whoever is refused, so many seconds before the deadline."""
    return TooLate(
        f"no time is left: the deadline is in {left_s:.3f} s, a turn comes in {refusal.wait_s:.3f} s, "
        f"and an answer takes {refusal.takes_s:.3f} s",
        refusal.wait_s,
    )


def pareto_rungs(card: ModelCard) -> tuple[Rung, ...]:
    """The rungs that a policy may choose from: each better, as was measured, than all that are cheaper."""
    rungs: list[Rung] = []
    for rung in card.ladder[:-1]:
        if rung.quality is not None and rung.quality > max((r.quality or 0.0 for r in rungs), default=0.0):
            rungs.append(rung)
    return (*rungs, card.ladder[-1])
