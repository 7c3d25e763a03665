"""Leave once consecutive heads agree ("BERT Loses Patience", NeurIPS 2020; one of LGViT's policies)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.core.errors import BadPlan

EXAMPLES: tuple[str | None, ...] = ("4", "2", "1")
"""Arguments the contract tests use; with the first, hardly any sample ever leaves."""


@dataclass(frozen=True, slots=True)
class Patience:
    """A sample leaves when `agreements` consecutive heads each predict the class of the head before them.

    "BERT Loses Patience: Fast and Robust Inference with Early Exit", section 3.2: the count starts at 0
    with the first head and grows with each head that repeats its predecessor. With a patience of 1, a sample
    leaves at the second head at the earliest. (LGViT's code counts heads: its N is N - 1 here.)
    """

    agreements: int
    """Number of consecutive agreements, at least 1."""

    def __call__(self, logits: Sequence[Tensor]) -> Tensor:
        """True for the samples that leave: (B,) bool."""
        recent = logits[-self.agreements - 1 :]
        if len(recent) <= self.agreements:
            return torch.zeros(len(logits[-1]), dtype=torch.bool, device=logits[-1].device)
        scores = torch.stack(list(recent))
        predicted = scores.argmax(dim=-1)
        # argmax returns a class even for scores that are NaN.
        return (predicted == predicted[-1]).all(dim=0) & ~scores.isnan().any(dim=-1).any(dim=0)


def candidates(heads: int) -> Sequence[str]:
    """Arguments to measure on a model with this number of exit heads."""
    return [str(agreements) for agreements in range(1, min(heads, 4))]


def build(argument: str | None) -> Patience:
    """`exit:patience:2`. Raises BadPlan for anything but a whole number from 1 to 99."""
    if not re.fullmatch(r"[1-9][0-9]?", argument or ""):
        raise BadPlan(
            f"exit:patience takes a whole number of agreements from 1 to 99, as in exit:patience:2; "
            f"got {argument or ''!r}"
        )
    return Patience(int(argument or ""))
