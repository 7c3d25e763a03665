"""IA-RED^2: trained gates drop the patches that the answer does not need, stage by stage.

"IA-RED^2: Interpretability-Aware Redundancy Reduction for Vision Transformers" (NeurIPS 2021),
sections 3.2 and 3.3. The paper drops what scores under a half, so that every picture keeps another
number; here each stage keeps the best-scored share, so that batches stay rectangular.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from foveate.core.errors import BadPlan
from foveate.models.layers.config import ReductionPoint
from foveate.models.layers.reducer import Attention, Needs, Reducer, ReducerContext
from foveate.models.layers.tokens import Assignment, Tokens

EXAMPLES: tuple[str | None, ...] = ("1.0", "0.7", "0.3")
"""Arguments the contract tests use; the first is the identity."""


@dataclass(frozen=True, slots=True)
class IaRed(Reducer):
    """Before each block that has a gate, the ceil(keep * N) best-scored of the N patch tokens go on."""

    keep: float
    gates: Mapping[int, nn.Module]
    """By the block they stand before, counted from 0."""
    point = ReductionPoint.BEFORE

    def needs(self, block: int) -> Needs | None:
        return Needs.NOTHING if self.keep < 1 and block in self.gates else None

    def left(self, tokens: int, prefix: int) -> int:
        return prefix + self._kept(tokens - prefix)

    def _kept(self, patches: int) -> int:
        return math.ceil(self.keep * patches)

    def __call__(self, tokens: Tokens, attention: Attention, block: int) -> Assignment:
        prefix = tokens.prefix
        scores = self.gates[block](tokens.x, prefix)
        best = scores.argsort(dim=1, descending=True, stable=True)[:, : self._kept(scores.shape[1])]
        always = torch.arange(prefix, device=best.device).expand(len(best), -1)
        # In the order of the picture: what attends to what does not depend on it, and it reads better.
        return Assignment(torch.cat([always, best.sort(dim=1).values + prefix], dim=1))


def build(argument: str | None, context: ReducerContext) -> IaRed:
    """`iared:0.7`: each stage keeps 70% of the patches that reach it.

    Raises BadPlan for a model without trained gates, or a keep rate that is none.
    """
    keep = float(argument) if argument and re.fullmatch(r"[0-9]*\.?[0-9]+", argument) else math.nan
    if not 0 < keep <= 1:
        raise BadPlan(
            f"iared takes a keep rate above 0 and at most 1, as in iared:0.7; got {argument or ''!r}"
        )
    if not context.config.class_token:
        raise BadPlan("iared's gates ask what the class token needs, and this model has none")
    if not len(context.gates):
        raise BadPlan("iared needs trained gates, and this model has none")
    gates = {int(after): gate for after, gate in context.gates.items()}
    return IaRed(keep, gates)
