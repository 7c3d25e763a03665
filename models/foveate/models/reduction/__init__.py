"""Token reducers, one method a file; the file's name is the name a plan uses."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Flag, auto
from functools import cache
from typing import Protocol

from torch import Tensor, nn

from foveate.core.errors import BadPlan
from foveate.models.catalogue import loaders
from foveate.models.geometry import Geometry, Place
from foveate.models.heads.dense import DenseHead
from foveate.models.tokens import Assignment, Tokens


class Needs(Flag):
    """What a reducer has to see of a block's attention; the trunk computes no more than that."""

    NOTHING = 0
    CLASS_ROW = auto()
    FULL = auto()
    KEYS = auto()
    VALUES = auto()


@dataclass(frozen=True, slots=True)
class Attention:
    """Attention information of one block, after its softmax."""

    class_row: Tensor | None = None
    """(B, N) float32: the class token's attention to every token, averaged over heads."""
    full: Tensor | None = None
    """(B, H, N, N): row by row what each token attends to."""
    keys: Tensor | None = None
    """(B, H, N, d)."""
    values: Tensor | None = None
    """(B, H, N, d)."""


class Reducer(Protocol):
    """Decides which tokens go on; the trunk applies the decision.

    Called at each block where `needs` says it has work. Pure: no state is kept between calls, and no
    row of a batch may influence another. A reducer subclasses this for the usual answers below.
    """

    place: Place = Place.MIDDLE
    """Where in a block it acts; AHEAD always sees the full attention."""
    proportional: bool = False
    """Attention is weighted by what each token stands for (ToMe, equation 1)."""
    adaptive: bool = False
    """The count differs from picture to picture; `after` is then the most there can be."""

    def needs(self, block: int) -> Needs | None:
        """What it must see at this block (counted from 0); None: it does nothing there."""
        ...

    def after(self, tokens: int, prefix: int, depth: int) -> tuple[int, ...]:
        """Tokens left after each block, prefix included, for an input of `tokens` of them."""
        counts = []
        for block in range(depth):
            if self.needs(block) is not None:
                tokens = self.left(tokens, prefix)
            counts.append(tokens)
        return tuple(counts)

    def left(self, tokens: int, prefix: int) -> int:
        """Tokens that a block leaves of `tokens` where it has work. Who tells `after` need not tell this."""
        return tokens

    def __call__(self, tokens: Tokens, attention: Attention, block: int) -> Assignment:
        """The assignment for this block. tokens.x: (B, N, D), in the MIDDLE the features that attention
        has updated, else those that enter the block."""
        ...


Schedule = tuple[tuple[int, int], ...]
"""For each block, the tokens kept by pruning and then by merging, prefix included (DiffRate)."""


class Host(Protocol):
    """What a reducer may know of the model it is built for."""

    @property
    def geometry(self) -> Geometry: ...

    @property
    def gates(self) -> nn.ModuleDict:
        """Trained gates by the number of blocks before them, as text (IA-RED); empty without any."""
        ...

    @property
    def schedules(self) -> Mapping[str, Schedule]:
        """Schedules found for this model by name, which is a GFLOPs target as in ``2.9`` (DiffRate)."""
        ...

    @property
    def dense(self) -> DenseHead | None:
        """The head that names patches (DToP); None where the model names whole pictures."""
        ...


@dataclass(frozen=True)
class Bare:
    """A model of which nothing is known but its shape: enough for what needs no training."""

    geometry: Geometry
    gates: nn.ModuleDict = field(default_factory=nn.ModuleDict)
    schedules: Mapping[str, Schedule] = field(default_factory=dict)
    dense: DenseHead | None = None


Builder = Callable[[str | None, Host], Reducer]


@cache
def catalogue() -> dict[str, Callable[[], Builder]]:
    """Every reducer by name: the files of this folder, then entry points `foveate.reducers`."""
    return loaders(sys.modules[__name__], "foveate.reducers")


def create(spec: str, host: Host) -> Reducer:
    """The reducer a plan names, as in ``evit:0.7``. Raises BadPlan for a name or argument it lacks."""
    name, _, argument = spec.partition(":")
    if name not in catalogue():
        raise BadPlan(f"there is no token reducer {name!r}; there are {', '.join(sorted(catalogue()))}")
    return catalogue()[name]()(argument or None, host)
