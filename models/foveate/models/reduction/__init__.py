"""Token reducers, one method a file; the file's name is the name a plan uses."""

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Protocol

from torch import Tensor

from foveate.core.errors import BadPlan
from foveate.models.geometry import Geometry
from foveate.models.tokens import Assignment, Tokens


class Needs(Enum):
    """What a reducer has to see of a block's attention; the trunk computes no more than that."""

    NOTHING = "nothing"
    CLASS_ROW = "class_row"
    FULL = "full"


@dataclass(frozen=True, slots=True)
class Attention:
    """Attention information of one block, after its softmax."""

    class_row: Tensor | None = None
    """(B, N): the class token's attention to every token, averaged over heads."""
    full: Tensor | None = None
    """(B, H, N, N)."""


class Reducer(Protocol):
    """Decides which tokens go on; the trunk applies the decision.

    Called between attention and MLP of each block where `needs` says it has work. Pure: no state is
    kept between calls, and no row of a batch may influence another.
    """

    proportional: bool
    """Attention is weighted by what each token stands for (ToMe, equation 1)."""

    def needs(self, block: int) -> Needs | None:
        """What it must see at this block (counted from 0); None: it does nothing there."""
        ...

    def after(self, tokens: int, prefix: int, depth: int) -> tuple[int, ...]:
        """Tokens left after each block, prefix included, for an input of `tokens` of them."""
        ...

    def __call__(self, tokens: Tokens, attention: Attention, block: int) -> Assignment:
        """The assignment for this block. tokens.x: (B, N, D), the features attention has updated."""
        ...


Builder = Callable[[str | None, Geometry], Reducer]


@cache
def catalogue() -> dict[str, Builder]:
    """Every reducer by name: the files of this folder, then entry points `foveate.reducers`."""
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    found: dict[str, Builder] = {n: import_module(f"{__name__}.{n}").build for n in names}
    for entry in entry_points(group="foveate.reducers"):
        found.setdefault(entry.name, entry.load())
    return found


def create(spec: str, geometry: Geometry) -> Reducer:
    """The reducer a plan names, as in ``evit:0.7``. Raises BadPlan for a name or argument it lacks."""
    name, _, argument = spec.partition(":")
    builder = catalogue().get(name)
    if builder is None:
        raise BadPlan(f"there is no token reducer {name!r}; there are {', '.join(sorted(catalogue()))}")
    return builder(argument or None, geometry)
