"""EViT: keep the tokens that the class token attends to most, and fuse the other patch tokens into one.

"Not All Patches are What You Need: Expediting Vision Transformers via Token Reorganizations"
(ICLR 2022), sections 3.2 and 3.3, equation 3.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from foveate.core.errors import BadPlan
from foveate.models.layers.config import ViTConfig
from foveate.models.layers.reducer import Attention, Needs, Reducer, ReducerContext
from foveate.models.layers.tokens import Assignment, Tokens

EXAMPLES: tuple[str | None, ...] = ("1.0", "0.7", "0.3")
"""Arguments the contract tests use; the first is the identity."""


@dataclass(frozen=True, slots=True)
class Evit(Reducer):
    """After the attention of the chosen blocks, ceil(keep * N) of the N patch tokens stay."""

    keep: float
    """Share of the patch tokens that stay at each chosen block, above 0 and at most 1."""
    blocks: tuple[int, ...]
    """Blocks that reduce, counted from 0."""

    def needs(self, block: int) -> Needs | None:
        """The class token's attention, at the chosen blocks."""
        return Needs.CLASS_ROW if self.keep < 1 and block in self.blocks else None

    def _kept(self, tokens: int, prefix: int) -> int:
        """Patch tokens that stay."""
        return math.ceil(self.keep * (tokens - prefix))

    def remaining(self, tokens: int, prefix: int) -> int:
        """Tokens after one chosen block, prefix and fused token included."""
        kept = prefix + self._kept(tokens, prefix)
        return tokens if kept == tokens else kept + 1

    def macs(self, config: ViTConfig, patches: int, tokens: int, block: int) -> float:
        """Fusion of the tokens that do not stay."""
        return (tokens - config.prefix - self._kept(tokens, config.prefix)) * config.width

    def drops(self, block: int) -> bool:
        """At every block that it reduces."""
        return True

    def __call__(self, tokens: Tokens, attention: Attention, block: int) -> Assignment:
        """Keep the tokens with the highest attention, and fuse the others."""
        if attention.class_row is None:
            raise ValueError("evit needs the class token's attention")
        prefix, batch = tokens.prefix, tokens.x.shape[0]
        scores = attention.class_row[:, prefix:]
        # One sort gives both parts, the attentive tokens and the others.
        order = scores.argsort(dim=1, descending=True, stable=True)
        count = self._kept(len(tokens), prefix)
        prefix_positions = torch.arange(prefix, device=order.device).expand(batch, -1)
        kept = torch.cat([prefix_positions, order[:, :count] + prefix], dim=1)
        rest = order[:, count:]
        # Equation 3: the attention values themselves are the weights; they are not renormalised.
        return Assignment(kept, rest + prefix, scores.gather(1, rest).unsqueeze(1))


def stages(depth: int) -> tuple[int, ...]:
    """The blocks that reduce, counted from 0: at a quarter, a half and three quarters of the depth."""
    return tuple(sorted({depth // 4, depth * 6 // 12, depth * 9 // 12}))


def candidates(context: ReducerContext, image_size: int) -> Sequence[str]:
    """Arguments to measure on this model at this image size, in pixels."""
    return ("0.9", "0.8", "0.7", "0.6", "0.5", "0.4", "0.3", "0.2", "0.1")


def build(argument: str | None, context: ReducerContext) -> Evit:
    """`evit:0.7`. It reduces at blocks 4, 7 and 10 of 12, counted from 1, and in proportion at other depths.

    Raises BadPlan for a model without a class token, or an argument that is not a keep rate.
    """
    config = context.config
    if not config.class_token:
        raise BadPlan("evit ranks tokens by the class token's attention, and this model has none")
    keep = float(argument) if argument and re.fullmatch(r"[0-9]*\.?[0-9]+", argument) else math.nan
    if not 0 < keep <= 1:
        raise BadPlan(f"evit takes a keep rate above 0 and at most 1, as in evit:0.7; got {argument or ''!r}")
    return Evit(keep, stages(config.depth))
