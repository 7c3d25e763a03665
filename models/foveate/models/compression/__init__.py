"""Methods that decide which visual tokens a language model gets of a picture.

Each module is one method, and its file name is the method's name in a plan, as in ``pool:49``.
"""

import sys
from collections.abc import Callable
from difflib import get_close_matches
from functools import cache

from foveate.core.errors import BadPlan
from foveate.models.layers.visual_tokens import Compression, CompressionContext
from foveate.models.registry import declared_candidates, discover

CompressionBuilder = Callable[[str | None, CompressionContext], Compression]
"""A module's `build`. It takes the argument of the method in a plan, or None, and the model's context."""


@cache
def catalogue() -> dict[str, Callable[[], CompressionBuilder]]:
    """Every method by name: the modules of this package, then the entry points `foveate.compression`."""
    return discover(sys.modules[__name__], "foveate.compression")


def create(spec: str, context: CompressionContext) -> Compression:
    """The method that a plan names, as in ``pool:49``.

    Raises BadPlan for an unknown name, or an argument that the method or the model does not support.
    """
    name, _, argument = spec.partition(":")
    if name not in catalogue():
        near = get_close_matches(name, catalogue(), n=1)
        nearest = f"the nearest is {near[0]}; " if near else ""
        known = ", ".join(sorted(catalogue()))
        raise BadPlan(f"there is no compression method {name[:40]!r}; {nearest}there are {known}")
    return catalogue()[name]()(argument or None, context)


def candidates(context: CompressionContext) -> dict[str, tuple[str, ...]]:
    """The plans' texts that each method offers for a model, by its name.

    The arguments are those of the function `candidates` beside the method's `build`; a method without one
    has none.
    """
    offered = {n: declared_candidates(load, context) for n, load in sorted(catalogue().items())}
    return {name: tuple(f"{name}:{a}" if a else name for a in texts) for name, texts in offered.items()}
