"""What sits on the trunk: heads that answer, and gates that look ahead."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class ExitSpec:
    """An exit head: where it sits and which of LGViT's two kinds it is (`exits.py` beside this file)."""

    after: int
    """Blocks before it."""
    kind: Literal["local", "global"]
    size: int
    """Side of a local head's convolution, odd; side of the squares of patches a global head averages."""
