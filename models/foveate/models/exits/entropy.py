"""Leave once the class distribution's entropy is low enough (LGViT's entropy policy, from BranchyNet)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.core.errors import BadPlan

EXAMPLES: tuple[str | None, ...] = ("0", "0.2", "0.6")
"""Arguments the contract tests use; with the first, hardly any sample ever leaves."""


@dataclass(frozen=True, slots=True)
class Entropy:
    """A sample leaves when its entropy is at most `threshold` times the maximum, log C, for C classes.

    "BranchyNet: Fast Inference via Early Exiting from Deep Neural Networks" (ICPR 2016), section III,
    divided by log C so that a threshold means the same for any number of classes. (LGViT's code does not
    divide: its 0.6 for 100 classes is 0.13 here.)
    """

    threshold: float
    """A share of the maximum entropy, at least 0 and below 1."""

    def __call__(self, logits: Sequence[Tensor]) -> Tensor:
        """True for the samples that leave: (B,) bool."""
        probabilities = logits[-1].float().softmax(dim=-1)
        maximum = math.log(probabilities.shape[-1])
        entropy: Tensor = torch.special.entr(probabilities).sum(dim=-1)
        return entropy <= self.threshold * maximum


def candidates(heads: int) -> Sequence[str]:
    """Arguments to measure on a model with this number of exit heads."""
    return ("0.05", "0.1", "0.2", "0.4")


def build(argument: str | None) -> Entropy:
    """`exit:entropy:0.2`. Raises BadPlan for a number outside [0, 1)."""
    try:
        threshold = float(argument or "")
    except ValueError:
        threshold = math.nan
    if not 0 <= threshold < 1:
        raise BadPlan(
            "exit:entropy takes a number of at least 0 and below 1, as in exit:entropy:0.2; "
            f"got {argument or ''!r}"
        )
    return Entropy(threshold)
