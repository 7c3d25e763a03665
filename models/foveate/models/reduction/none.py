"""No reduction: every token goes through every block."""

from foveate.core.errors import BadPlan
from foveate.models.geometry import Geometry
from foveate.models.reduction import Attention, Needs
from foveate.models.tokens import Assignment, Tokens

EXAMPLES: tuple[str | None, ...] = (None,)
"""Arguments the contract tests use; the first is the identity."""


class Nothing:
    """The identity, and what full compute means."""

    proportional = False

    def needs(self, block: int) -> Needs | None:
        return None

    def after(self, tokens: int, prefix: int, depth: int) -> tuple[int, ...]:
        return (tokens,) * depth

    def __call__(self, tokens: Tokens, attention: Attention, block: int) -> Assignment:
        raise NotImplementedError("the identity has nothing to decide; `needs` says so")


def build(argument: str | None, geometry: Geometry) -> Nothing:
    if argument is not None:
        raise BadPlan(f"the reducer none takes no argument, got {argument!r}")
    return Nothing()
