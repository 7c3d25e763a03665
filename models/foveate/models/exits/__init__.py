"""Exit rules. Each module is one rule. It decides for each sample, independent of the rest of the batch."""

import sys
from collections.abc import Callable, Sequence
from functools import cache
from typing import Protocol

from torch import Tensor

from foveate.core.errors import BadPlan
from foveate.models.registry import declared_candidates, discover


class ExitRule(Protocol):
    """Decides from the logits of the exit heads so far which samples leave."""

    def __call__(self, logits: Sequence[Tensor], /) -> Tensor:
        """True for the samples that leave: (B,) bool.

        logits: (B, C) of each exit head that these samples have passed, the latest last. The rule decides
        each row independently and keeps no state between calls.
        """
        ...


ExitRuleBuilder = Callable[[str | None], ExitRule]
"""A module's `build`. It takes the rule's argument, or None."""


@cache
def catalogue() -> dict[str, Callable[[], ExitRuleBuilder]]:
    """Every exit rule by name: the modules of this package, then the entry points `foveate.exits`."""
    return discover(sys.modules[__name__], "foveate.exits")


def create(spec: str) -> ExitRule:
    """The rule that a plan's ``exit:`` names: ``0.9`` is confidence, other rules are ``name:argument``.

    Raises BadPlan for an unknown name, or an argument that the rule does not support.
    """
    name, _, argument = spec.partition(":") if spec[:1].isalpha() else ("confidence", "", spec)
    if name not in catalogue():
        raise BadPlan(f"there is no exit rule {name!r}; there are {', '.join(sorted(catalogue()))}")
    return catalogue()[name]()(argument or None)


def candidates(heads: int) -> dict[str, tuple[str, ...]]:
    """The arguments that each rule offers for a model with this number of exit heads, by the rule's name.

    They are those of the function `candidates` beside the rule's `build`; a rule without one has none.
    """
    return {name: declared_candidates(load, heads) for name, load in sorted(catalogue().items())}
