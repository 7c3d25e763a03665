"""Random pruning: the baseline that every method which ranks tokens must beat.

A fixed random choice of positions, the same for all images, prunes at the blocks of EViT. No default ladder
uses it: it is measured so that comparisons of reducers have a reference.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from foveate.core.errors import BadPlan
from foveate.models.layers.reducer import Attention, Needs, Reducer, ReducerContext
from foveate.models.layers.tokens import Assignment, Tokens
from foveate.models.reduction.evit import stages

EXAMPLES: tuple[str | None, ...] = ("1.0", "0.7", "0.3", "0.5:2")
"""Arguments the contract tests use; the first is the identity."""


@dataclass(frozen=True, slots=True)
class RandomPruning(Reducer):
    """After the attention of the chosen blocks, ceil(keep * N) of the N patch tokens stay."""

    keep: float
    """Share of the patch tokens that stay at each chosen block, above 0 and at most 1."""
    blocks: tuple[int, ...]
    """Blocks that prune, counted from 0."""
    seed: int = 0

    def needs(self, block: int) -> Needs | None:
        """No attention, at the chosen blocks."""
        return Needs.NOTHING if self.keep < 1 and block in self.blocks else None

    def remaining(self, tokens: int, prefix: int) -> int:
        """Tokens after one chosen block, prefix included."""
        return prefix + math.ceil(self.keep * (tokens - prefix))

    def drops(self, block: int) -> bool:
        """At every block that it reduces."""
        return True

    def __call__(self, tokens: Tokens, attention: Attention, block: int) -> Assignment:
        """Keep random patch tokens, in image order."""
        return keep_random(tokens, self.remaining(len(tokens), tokens.prefix), self.seed, block)


def keep_random(tokens: Tokens, count: int, seed: int, block: int) -> Assignment:
    """Keep the prefix and random patch tokens, `count` tokens in total, at equal positions in all images."""
    prefix, generator = tokens.prefix, torch.Generator().manual_seed(1000 * seed + block)
    drawn = torch.randperm(len(tokens) - prefix, generator=generator)[: count - prefix].sort().values
    kept = torch.cat([torch.arange(prefix), prefix + drawn]).to(tokens.x.device)
    return Assignment(kept.expand(len(tokens.x), -1))


def candidates(context: ReducerContext, image_size: int) -> Sequence[str]:
    """Arguments to measure on this model at this image size, in pixels."""
    return ("0.8", "0.6", "0.4", "0.2")


def build(argument: str | None, context: ReducerContext) -> RandomPruning:
    """`random:0.7` keeps a random 70% of the patch tokens after blocks 4, 7 and 10 of 12, counted from 1.

    `random:0.7:3` is the draw with the seed 3; the default seed is 0. Raises BadPlan for another argument.
    """
    match = re.fullmatch(r"([0-9]*\.?[0-9]+)(?::([0-9]{1,3}))?", argument or "", re.ASCII)
    keep = float(match[1]) if match else math.nan
    if match is None or not 0 < keep <= 1:
        raise BadPlan(
            "random takes a keep rate up to 1, and a seed if wanted, as in 0.7 or 0.7:3; "
            f"got {argument or ''!r}"
        )
    return RandomPruning(keep, stages(context.config.depth), int(match[2] or 0))
