"""Token reducers, one method a file; the file's name is the name a plan uses."""

import sys
from collections.abc import Callable
from functools import cache

from foveate.core.errors import BadPlan
from foveate.models.layers.reducer import Reducer, ReducerContext
from foveate.models.registry import loaders

Builder = Callable[[str | None, ReducerContext], Reducer]


@cache
def catalogue() -> dict[str, Callable[[], Builder]]:
    """Every reducer by name: the files of this folder, then entry points `foveate.reducers`."""
    return loaders(sys.modules[__name__], "foveate.reducers")


def create(spec: str, context: ReducerContext) -> Reducer:
    """The reducer a plan names, as in ``evit:0.7``. Raises BadPlan for a name or argument it lacks."""
    name, _, argument = spec.partition(":")
    if name not in catalogue():
        raise BadPlan(f"there is no token reducer {name!r}; there are {', '.join(sorted(catalogue()))}")
    return catalogue()[name]()(argument or None, context)
