"""Modules on top of the trunk: heads that compute answers, and gates that score tokens."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class ExitSpec:
    """An exit head: its position and its kind, one of LGViT's two (`heads/exits.py`)."""

    after: int
    """Number of blocks before the head."""
    kind: Literal["local", "global"]
    size: int
    """For a local head, the odd side of its convolution. For a global head, the side of the squares of
    patches it averages."""
