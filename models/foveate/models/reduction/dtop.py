"""DToP: patches whose class is certain leave early, and a few of each class stay as context.

"Dynamic Token Pruning in Plain Vision Transformers for Semantic Segmentation" (ICCV 2023), sections 3.2
and 3.3. The paper has an auxiliary head for each stage; here all stages share the one that the dense head
names patches with, behind a reader of their own.
"""

import math
import re
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.core.errors import BadPlan
from foveate.models.geometry import Place
from foveate.models.heads.dense import DenseHead
from foveate.models.packing import packed
from foveate.models.reduction import Attention, Host, Needs, Reducer
from foveate.models.tokens import Assignment, Tokens

EXAMPLES: tuple[str | None, ...] = ("1.0", "0.4", "0.0")
"""Arguments the contract tests use; the first is the identity."""

CONTEXT = 5
"""Patches of each class that stay however sure they are (section 3.3)."""


@dataclass(frozen=True, slots=True)
class Dtop(Reducer):
    """Before the first block of each stage, patches whose best class has more than `sure` leave."""

    sure: float
    head: DenseHead
    stages: tuple[int, ...]
    """Blocks before which patches may leave, counted from 0."""
    place = Place.BEFORE
    adaptive = True
    proportional = True

    def needs(self, block: int) -> Needs | None:
        return Needs.NOTHING if self.sure < 1 and block in self.stages else None

    def left(self, tokens: int, prefix: int) -> int:
        return tokens

    def __call__(self, tokens: Tokens, attention: Attention, block: int) -> Assignment:
        prefix = tokens.prefix
        canvas = self.head.read(tokens.x[:, prefix:], block)
        scores = self.head.name(canvas).float().softmax(2)
        present = tokens.counts[:, prefix:] > 0
        return packed(stays(scores, present, self.sure), prefix, tokens.counts)


def stays(scores: Tensor, present: Tensor, sure: float, context: int = CONTEXT) -> Tensor:
    """Which patches go on: (B, P) bool.

    scores: (B, P, C) probabilities; present: (B, P) bool, False for padding.
    """
    best, found = scores.max(2)
    best = best.masked_fill(~present, -1)
    order = best.argsort(dim=1, descending=True, stable=True)
    classes = F.one_hot(found.gather(1, order), scores.shape[2])
    # How many of its class are at least as sure, itself included.
    place = (classes.cumsum(1) * classes).sum(2)
    rank = torch.zeros_like(place).scatter(1, order, place)
    return present & ((best <= sure) | (rank <= context))


def build(argument: str | None, host: Host) -> Dtop:
    """`dtop:0.95`: after a third, a half and two thirds of the blocks; `dtop:1` is the identity.

    Raises BadPlan for a model without a dense head or a class token, or for what is no probability.
    """
    sure = float(argument) if argument and re.fullmatch(r"[0-9]*\.?[0-9]+", argument) else math.nan
    if not 0 <= sure <= 1:
        raise BadPlan(f"dtop takes a probability of at most 1, as in dtop:0.95; got {argument or ''!r}")
    if host.dense is None:
        raise BadPlan("dtop asks what each patch shows, and this model has no dense head to say it")
    if not host.geometry.prefix:
        raise BadPlan("dtop fills shorter rows with the class token, and this model has none")
    depth = host.geometry.depth
    return Dtop(sure, host.dense, tuple(sorted({depth // 3, depth // 2, 2 * depth // 3})))
