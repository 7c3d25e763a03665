"""Token reducers, one method a file; the file's name is the name a plan uses."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import Protocol

from torch import Tensor

from foveate.core.errors import BadPlan
from foveate.models.catalogue import loaders
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
def catalogue() -> dict[str, Callable[[], Builder]]:
    """Every reducer by name: the files of this folder, then entry points `foveate.reducers`."""
    return loaders(sys.modules[__name__], "foveate.reducers")


def create(spec: str, geometry: Geometry) -> Reducer:
    """The reducer a plan names, as in ``evit:0.7``. Raises BadPlan for a name or argument it lacks."""
    name, _, argument = spec.partition(":")
    if name not in catalogue():
        raise BadPlan(f"there is no token reducer {name!r}; there are {', '.join(sorted(catalogue()))}")
    return catalogue()[name]()(argument or None, geometry)
