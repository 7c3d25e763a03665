"""Leave once heads in a row agree ("BERT Loses Patience", NeurIPS 2020; one of LGViT's policies)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.core.errors import BadPlan

EXAMPLES: tuple[str | None, ...] = ("4", "2", "1")
"""Arguments the contract tests use; the first all but never lets a sample leave."""


@dataclass(frozen=True, slots=True)
class Patience:
    """A sample leaves when `agreements` heads in a row named the class that the head before them named.

    "BERT Loses Patience: Fast and Robust Inference with Early Exit", section 3.2: the count starts at 0
    with the first head and grows with each head that repeats its predecessor, so with a patience of 1 the
    second head is the first to let a sample go. (LGViT's code counts heads: its N is N - 1 here.)
    """

    agreements: int

    def __call__(self, answers: Sequence[Tensor]) -> Tensor:
        recent = answers[-self.agreements - 1 :]
        if len(recent) <= self.agreements:
            return torch.zeros(len(answers[-1]), dtype=torch.bool, device=answers[-1].device)
        scores = torch.stack(list(recent))
        named = scores.argmax(dim=-1)
        # argmax names a class for scores that are no numbers, too.
        return (named == named[-1]).all(dim=0) & ~scores.isnan().any(dim=-1).any(dim=0)


def build(argument: str | None) -> Patience:
    if not re.fullmatch(r"[1-9][0-9]?", argument or ""):
        raise BadPlan(
            f"exit:patience takes a whole number of agreements from 1 to 99, as in exit:patience:2; "
            f"got {argument or ''!r}"
        )
    return Patience(int(argument or ""))
