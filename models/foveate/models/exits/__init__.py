"""Exit rules, one a file; a sample leaves when its own rule says so, whatever its batch does."""

import sys
from collections.abc import Callable, Sequence
from functools import cache
from typing import Protocol

from torch import Tensor

from foveate.core.errors import BadPlan
from foveate.models.registry import loaders


class ExitRule(Protocol):
    """Decides, from the answers of the exit heads so far, which samples are done."""

    def __call__(self, answers: Sequence[Tensor]) -> Tensor:
        """Logits (B, C) of each head that these samples have passed, the newest last -> (B,) bool.

        Each row by itself; a rule keeps nothing between calls.
        """
        ...


Builder = Callable[[str | None], ExitRule]


@cache
def catalogue() -> dict[str, Callable[[], Builder]]:
    """Every exit rule by name: the files of this folder, then entry points `foveate.exits`."""
    return loaders(sys.modules[__name__], "foveate.exits")


def create(spec: str) -> ExitRule:
    """The rule behind a plan's ``exit:``: ``0.9`` is confidence, others come as ``name:argument``."""
    name, _, argument = spec.partition(":") if spec[:1].isalpha() else ("confidence", "", spec)
    if name not in catalogue():
        raise BadPlan(f"there is no exit rule {name!r}; there are {', '.join(sorted(catalogue()))}")
    return catalogue()[name]()(argument or None)
