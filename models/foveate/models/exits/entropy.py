"""Leave once the class distribution's entropy is low enough (LGViT's entropy policy, from BranchyNet)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.core.errors import BadPlan

EXAMPLES: tuple[str | None, ...] = ("0", "0.2", "0.6")
"""Arguments the contract tests use; the first all but never lets a sample leave."""


@dataclass(frozen=True, slots=True)
class Entropy:
    """A sample leaves when its entropy is at most `threshold` of the most there can be, log C.

    "BranchyNet: Fast Inference via Early Exiting from Deep Neural Networks" (ICPR 2016), section III,
    divided by log C so that a threshold means the same for any number of classes. (LGViT's code does not
    divide: its 0.6 for 100 classes is 0.13 here.)
    """

    threshold: float

    def __call__(self, answers: Sequence[Tensor]) -> Tensor:
        chances = answers[-1].float().softmax(dim=-1)
        most = math.log(chances.shape[-1])
        entropy: Tensor = torch.special.entr(chances).sum(dim=-1)
        return entropy <= self.threshold * most


def build(argument: str | None) -> Entropy:
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
