"""Random patches: the baseline that every method which ranks patches must beat.

Of importance scores that lose to it: "Feather the Throttle: Revisiting Visual Token Pruning for
Vision-Language Model Acceleration" (arXiv 2412.13180) and "Stop Looking for Important Tokens in Multimodal
Language Models" (arXiv 2502.11494).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from foveate.core.errors import BadPlan
from foveate.models.layers.visual_tokens import (
    Compression,
    CompressionContext,
    PatchVectors,
    VisualAssignment,
    selection,
    token_count,
    usual_counts,
)

EXAMPLES: tuple[str | None, ...] = ("36", "16", "16:3", "5", "1")
"""Arguments the contract tests use; the first is the identity of 36 patches."""


@dataclass(frozen=True, slots=True)
class RandomSelection(Compression):
    """Keeps random patches, the same of every picture."""

    count: int
    grid: tuple[int, int]
    seed: int = 0
    selects = True
    needs_vectors = False

    def __call__(self, patches: PatchVectors) -> VisualAssignment:
        """The patches drawn by the seed, in order."""
        positions, generator = patches.positions(self.grid), torch.Generator().manual_seed(self.seed)
        kept = torch.randperm(len(positions), generator=generator)[: self.count]
        return selection(kept.to(positions.device), positions)


def candidates(context: CompressionContext) -> Sequence[str]:
    """Arguments to measure on this model."""
    return usual_counts(context)


def build(argument: str | None, context: CompressionContext) -> RandomSelection:
    """`random:49` keeps 49 random patches; `random:49:3` is the draw with the seed 3.

    The default seed is 0. Raises BadPlan for another argument.
    """
    number, separator, seed = (argument or "").partition(":")
    if separator and not re.fullmatch("[0-9]{1,3}", seed, re.ASCII):
        raise BadPlan(
            f"random takes a number of visual tokens, and a seed from 0 to 999 if wanted, as in 49:3; "
            f"got {(argument or '')[:40]!r}"
        )
    return RandomSelection(token_count("random", number, context), context.grid, int(seed or 0))
