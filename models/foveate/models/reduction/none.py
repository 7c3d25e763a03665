"""No reduction: every token goes through every block."""

from foveate.core.errors import BadPlan
from foveate.models.layers.reducer import Attention, Needs, Reducer, ReducerContext
from foveate.models.layers.tokens import Assignment, Tokens

EXAMPLES: tuple[str | None, ...] = (None,)
"""Arguments the contract tests use; the first is the identity."""


class Identity(Reducer):
    """The identity, and what full compute means."""

    def needs(self, block: int) -> Needs | None:
        return None

    def after(self, tokens: int, prefix: int, depth: int) -> tuple[int, ...]:
        return (tokens,) * depth

    def __call__(self, tokens: Tokens, attention: Attention, block: int) -> Assignment:
        raise NotImplementedError("the identity has nothing to decide; `needs` says so")


def build(argument: str | None, context: ReducerContext) -> Identity:
    if argument is not None:
        raise BadPlan(f"the reducer none takes no argument, got {argument!r}")
    return Identity()
