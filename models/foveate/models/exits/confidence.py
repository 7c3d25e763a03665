"""Leave once the largest class probability reaches a threshold (LGViT, section 3.4)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from foveate.core.errors import BadPlan

EXAMPLES: tuple[str | None, ...] = ("1.0", "0.9", "0.6")
"""Arguments the contract tests use; the first all but never lets a sample leave."""


@dataclass(frozen=True, slots=True)
class Confidence:
    """A sample leaves when its top softmax probability is at least `threshold`.

    LGViT's code asks for more than the threshold and looks at the surest of a batch, which is why it only
    takes pictures one by one; here each row is asked by itself.
    """

    threshold: float

    def __call__(self, answers: Sequence[Tensor]) -> Tensor:
        return answers[-1].float().softmax(dim=-1).amax(dim=-1) >= self.threshold


def build(argument: str | None) -> Confidence:
    try:
        threshold = float(argument or "")
    except ValueError:
        threshold = math.nan
    if not 0 < threshold <= 1:
        raise BadPlan(
            f"exit takes a confidence above 0 and at most 1, as in exit:0.9; got {argument or ''!r}"
        )
    return Confidence(threshold)
