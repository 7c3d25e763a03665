"""Token reducers. Each module is one method, and its file name is the method's name in a plan."""

import sys
from collections.abc import Callable
from functools import cache

from foveate.core.errors import BadPlan
from foveate.models.layers.reducer import Reducer, ReducerContext
from foveate.models.registry import declared_candidates, discover

ReducerBuilder = Callable[[str | None, ReducerContext], Reducer]
"""A module's `build`. It takes the argument of the reducer in a plan, or None, and the model's context."""


@cache
def catalogue() -> dict[str, Callable[[], ReducerBuilder]]:
    """Every reducer by name: the modules of this package, then the entry points `foveate.reducers`."""
    return discover(sys.modules[__name__], "foveate.reducers")


def create(spec: str, context: ReducerContext) -> Reducer:
    """The reducer that a plan names, as in ``evit:0.7``.

    Raises BadPlan for an unknown name, or an argument that the reducer or the model does not support.
    """
    name, _, argument = spec.partition(":")
    if name not in catalogue():
        raise BadPlan(f"there is no token reducer {name!r}; there are {', '.join(sorted(catalogue()))}")
    return catalogue()[name]()(argument or None, context)


def candidates(context: ReducerContext, image_size: int) -> dict[str, tuple[str, ...]]:
    """The plans' texts that each reducer offers for a model at an image size in pixels, by its name.

    The arguments are those of the function `candidates` beside the reducer's `build`; a reducer without one
    has none.
    """
    offered = {n: declared_candidates(load, context, image_size) for n, load in sorted(catalogue().items())}
    return {name: tuple(f"{name}:{a}" if a else name for a in texts) for name, texts in offered.items()}
