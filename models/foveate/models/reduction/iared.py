"""IA-RED^2: trained gates drop patches that the answer does not need, stage by stage.

"IA-RED^2: Interpretability-Aware Redundancy Reduction for Vision Transformers" (NeurIPS 2021),
sections 3.2 and 3.3. The paper drops patches with a score under one half, so the number of patches differs
between images. Here each stage keeps a fixed share, the patches with the best scores, so batches stay
rectangular.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from foveate.core.errors import BadPlan
from foveate.models.layers.config import ReductionPoint, ViTConfig
from foveate.models.layers.reducer import Attention, Needs, Reducer, ReducerContext
from foveate.models.layers.tokens import Assignment, Tokens

EXAMPLES: tuple[str | None, ...] = ("1.0", "0.7", "0.3")
"""Arguments the contract tests use; the first is the identity."""


@dataclass(frozen=True, slots=True)
class IaRed(Reducer):
    """Before each block with a gate, the ceil(keep * N) of N patch tokens with the best scores stay."""

    keep: float
    """Share of the patch tokens that stay at each gate, above 0 and at most 1."""
    gates: Mapping[int, nn.Module]
    """Gates by the block after them, counted from 0."""
    point = ReductionPoint.BEFORE

    def needs(self, block: int) -> Needs | None:
        """No attention, at blocks that have a gate."""
        return Needs.NOTHING if self.keep < 1 and block in self.gates else None

    def remaining(self, tokens: int, prefix: int) -> int:
        """Tokens after one gate, prefix included."""
        return prefix + self._kept(tokens - prefix)

    def _kept(self, patches: int) -> int:
        """Patch tokens that stay."""
        return math.ceil(self.keep * patches)

    def macs(self, config: ViTConfig, patches: int, tokens: int, block: int) -> float:
        """The gate, if it states its cost."""
        gate_macs = getattr(self.gates[block], "macs", None)
        return float(gate_macs(tokens - config.prefix)) if callable(gate_macs) else 0.0

    def drops(self, block: int) -> bool:
        """At every block that it reduces."""
        return True

    def __call__(self, tokens: Tokens, attention: Attention, block: int) -> Assignment:
        """Keep the patch tokens to which the block's gate gives the best scores."""
        prefix = tokens.prefix
        scores = self.gates[block](tokens.x, prefix)
        best = scores.argsort(dim=1, descending=True, stable=True)[:, : self._kept(scores.shape[1])]
        prefix_positions = torch.arange(prefix, device=best.device).expand(len(best), -1)
        # Tokens stay in image order. Attention does not depend on the order; explanations are easier to read.
        return Assignment(torch.cat([prefix_positions, best.sort(dim=1).values + prefix], dim=1))


def candidates(context: ReducerContext, image_size: int) -> Sequence[str]:
    """Arguments to measure on this model at this image size, in pixels."""
    return ("0.8", "0.7", "0.6", "0.5", "0.4", "0.3", "0.2")


def build(argument: str | None, context: ReducerContext) -> IaRed:
    """`iared:0.7`: each stage keeps 70% of the patches that reach it.

    Raises BadPlan for a model without a class token or trained gates, or an argument that is not a keep rate.
    """
    keep = float(argument) if argument and re.fullmatch(r"[0-9]*\.?[0-9]+", argument) else math.nan
    if not 0 < keep <= 1:
        raise BadPlan(
            f"iared takes a keep rate above 0 and at most 1, as in iared:0.7; got {argument or ''!r}"
        )
    if not context.config.class_token:
        raise BadPlan("iared's gates compare patches with the class token, and this model has none")
    if not len(context.gates):
        raise BadPlan("iared needs trained gates, and this model has none")
    gates = {int(after): gate for after, gate in context.gates.items()}
    return IaRed(keep, gates)
