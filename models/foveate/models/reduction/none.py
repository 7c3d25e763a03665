"""No reduction: every token goes through every block."""

from collections.abc import Sequence

from foveate.core.errors import BadPlan
from foveate.models.layers.reducer import Attention, Needs, Reducer, ReducerContext
from foveate.models.layers.tokens import Assignment, Tokens

EXAMPLES: tuple[str | None, ...] = (None,)
"""Arguments the contract tests use; the first is the identity."""


class Identity(Reducer):
    """Keeps all tokens. This is full compute."""

    def needs(self, block: int) -> Needs | None:
        """None at every block."""
        return None

    def after(self, tokens: int, prefix: int, depth: int) -> tuple[int, ...]:
        """All tokens, after every block."""
        return (tokens,) * depth

    def __call__(self, tokens: Tokens, attention: Attention, block: int) -> Assignment:
        """Raises NotImplementedError, because `needs` never asks for a call."""
        raise NotImplementedError("the identity decides nothing, and its `needs` is None at every block")


def candidates(context: ReducerContext, image_size: int) -> Sequence[None]:
    """No reduction, at this image size in pixels."""
    return (None,)


def build(argument: str | None, context: ReducerContext) -> Identity:
    """`none`. Raises BadPlan for any argument."""
    if argument is not None:
        raise BadPlan(f"the reducer none takes no argument, got {argument!r}")
    return Identity()
