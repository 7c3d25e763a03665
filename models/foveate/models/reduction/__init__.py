"""Token reducers. Each module is one method, and its file name is the method's name in a plan."""

import sys
from collections.abc import Callable
from functools import cache

from foveate.core.errors import BadPlan
from foveate.models.layers.reducer import Reducer, ReducerContext
from foveate.models.registry import discover

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
