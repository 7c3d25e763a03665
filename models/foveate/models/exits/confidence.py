"""Leave once the largest class probability reaches a threshold (LGViT, section 3.4)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from foveate.core.errors import BadPlan

EXAMPLES: tuple[str | None, ...] = ("1.0", "0.9", "0.6")
"""Arguments the contract tests use; with the first, hardly any sample ever leaves."""


@dataclass(frozen=True, slots=True)
class Confidence:
    """A sample leaves when its largest softmax probability is at least `threshold`.

    LGViT's code requires more than the threshold and checks the most confident sample of a batch, so it only
    works for batches of one image. Here each row is checked independently.
    """

    threshold: float
    """A probability above 0 and at most 1."""

    def __call__(self, logits: Sequence[Tensor]) -> Tensor:
        """True for the samples that leave: (B,) bool."""
        return logits[-1].float().softmax(dim=-1).amax(dim=-1) >= self.threshold


def candidates(heads: int) -> Sequence[str]:
    """Arguments to measure on a model with this number of exit heads."""
    return ("0.95", "0.9", "0.8", "0.6")


def build(argument: str | None) -> Confidence:
    """`exit:0.9` or `exit:confidence:0.9`. Raises BadPlan for a number outside (0, 1]."""
    try:
        threshold = float(argument or "")
    except ValueError:
        threshold = math.nan
    if not 0 < threshold <= 1:
        raise BadPlan(
            f"exit takes a confidence above 0 and at most 1, as in exit:0.9; got {argument or ''!r}"
        )
    return Confidence(threshold)
