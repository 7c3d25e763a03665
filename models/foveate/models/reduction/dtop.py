"""DToP: patches whose class is certain leave early, and a few of each class stay as context.

"Dynamic Token Pruning in Plain Vision Transformers for Semantic Segmentation" (ICCV 2023), sections 3.2
and 3.3. The paper has an auxiliary head for each stage; here all stages share the one that the dense head
names patches with, behind a reader of their own. Beside its threshold there is a fixed share: as many go on
in every picture, so that rows stay equally long and a batch is as fast as it is small.
"""

import math
import re
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.core.errors import BadPlan
from foveate.models.layers.config import ReductionPoint
from foveate.models.layers.packing import packed
from foveate.models.layers.reducer import Attention, Needs, PatchClassifier, Reducer, ReducerContext
from foveate.models.layers.tokens import Assignment, Tokens

EXAMPLES: tuple[str | None, ...] = ("1.0", "0.4", "0.0", "0.4@2")
"""Arguments the contract tests use; the first is the identity."""

CONTEXT = 5
"""Patches of each class that stay however sure they are (section 3.3)."""


@dataclass(frozen=True, slots=True)
class Dtop(Reducer):
    """Before the first block of each stage, patches whose best class has more than `sure` leave."""

    sure: float
    head: PatchClassifier
    stages: tuple[int, ...]
    """Blocks before which patches may leave, counted from 0."""
    point = ReductionPoint.BEFORE
    adaptive = True
    proportional = True

    def needs(self, block: int) -> Needs | None:
        return Needs.NOTHING if self.sure < 1 and block in self.stages else None

    def left(self, tokens: int, prefix: int) -> int:
        return tokens

    def __call__(self, tokens: Tokens, attention: Attention, block: int) -> Assignment:
        present = tokens.counts[:, tokens.prefix :] > 0
        scores = named(self.head, tokens, block).softmax(2)
        return packed(stays(scores, present, self.sure), tokens.prefix, tokens.counts)


@dataclass(frozen=True, slots=True)
class DtopShare(Reducer):
    """Before one block, all patches leave but the share of them whose best class is least sure."""

    share: float
    head: PatchClassifier
    block: int
    """Counted from 0."""
    point = ReductionPoint.BEFORE

    def needs(self, block: int) -> Needs | None:
        return Needs.NOTHING if self.share < 1 and block == self.block else None

    def left(self, tokens: int, prefix: int) -> int:
        return prefix + math.ceil(self.share * (tokens - prefix))

    def __call__(self, tokens: Tokens, attention: Attention, block: int) -> Assignment:
        scores, prefix = named(self.head, tokens, block), tokens.prefix
        # The logarithm of the best class's probability, without those of all the others.
        sure = scores.amax(2) - scores.logsumexp(2)
        count = self.left(len(tokens), prefix) - prefix
        least = sure.topk(count, dim=1, largest=False).indices.sort(1).values + prefix
        always = torch.arange(prefix, device=least.device).expand(len(least), -1)
        return Assignment(torch.cat([always, least], 1))


def named(head: PatchClassifier, tokens: Tokens, block: int) -> Tensor:
    """What each patch shows as it left so many blocks: (B, N, C) float32 scores."""
    return head.classify_patches(head.read(tokens.x[:, tokens.prefix :], block)).float()


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


def build(argument: str | None, context: ReducerContext) -> Dtop | DtopShare:
    """`dtop:0.95`: who is surer than that leaves after a third, a half and two thirds of the blocks.
    `dtop:0.3@4`: from block 4 on, counted from 1, the 0.3 of the patches that are least sure go on.
    `dtop:1` and `dtop:1@4` are the identity.

    Raises BadPlan for a model without a dense head or a class token, or for another argument.
    """
    match = re.fullmatch(r"([0-9]*\.?[0-9]+)(?:@([0-9]{1,3}))?", argument or "")
    sure, depth = float(match[1]) if match else math.nan, context.config.depth
    block = int(match[2]) if match and match[2] else 0
    if not 0 <= sure <= 1 or (block and sure == 0) or block > depth or (match and match[2] and not block):
        raise BadPlan(
            f"dtop takes a probability, as in 0.95, or a share and a block of {depth}, as in 0.3@4; "
            f"got {argument or ''!r}"
        )
    if context.dense is None:
        raise BadPlan("dtop asks what each patch shows, and this model has no dense head to say it")
    if not context.config.prefix:
        raise BadPlan("dtop fills shorter rows with the class token, and this model has none")
    if block:
        return DtopShare(sure, context.dense, block - 1)
    return Dtop(sure, context.dense, tuple(sorted({depth // 3, depth // 2, 2 * depth // 3})))
