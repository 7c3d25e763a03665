"""DToP: patches whose class is certain leave early, and a few patches of each class stay as context.

"Dynamic Token Pruning in Plain Vision Transformers for Semantic Segmentation" (ICCV 2023), sections 3.2 and
3.3. The paper has an auxiliary head for each stage. Here all stages share the patch classifier of the dense
head, with a reader for each block. As an alternative to the paper's threshold there is a fixed share: the
same number of patches stays in every image, so rows are equally long and the batch gets smaller.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.core.errors import BadPlan
from foveate.models.layers.config import ReductionPoint, ViTConfig
from foveate.models.layers.packing import keep_padded
from foveate.models.layers.reducer import Attention, Needs, PatchClassifier, Reducer, ReducerContext
from foveate.models.layers.tokens import Assignment, Tokens

EXAMPLES: tuple[str | None, ...] = ("1.0", "0.4", "0.0", "0.4@2")
"""Arguments the contract tests use; the first is the identity."""

CONTEXT = 5
"""Patches of each class that always stay, the most certain ones (section 3.3)."""


@dataclass(frozen=True, slots=True)
class Dtop(Reducer):
    """Before the first block of each stage, patches with a class more probable than `threshold` leave."""

    threshold: float
    """A probability. With 1 no patch leaves."""
    head: PatchClassifier
    stages: tuple[int, ...]
    """Blocks before which patches may leave, counted from 0."""
    point = ReductionPoint.BEFORE
    adaptive = True
    proportional = True

    def needs(self, block: int) -> Needs | None:
        """No attention, at the first block of each stage."""
        return Needs.NOTHING if self.threshold < 1 and block in self.stages else None

    def remaining(self, tokens: int, prefix: int) -> int:
        """All tokens: no patch may be certain."""
        return tokens

    def macs(self, config: ViTConfig, patches: int, tokens: int, block: int) -> float:
        """Classes of the patches that are left."""
        return (tokens - config.prefix) * self.head.patch_macs(classify=True)

    def drops(self, block: int) -> bool:
        """At every block that it reduces."""
        return True

    def __call__(self, tokens: Tokens, attention: Attention, block: int) -> Assignment:
        """Keep uncertain patches and the context of each class, in image order."""
        present = tokens.counts[:, tokens.prefix :] > 0
        probabilities = patch_scores(self.head, tokens, block).softmax(2)
        chosen = uncertain_or_context(probabilities, present, self.threshold)
        return keep_padded(chosen, tokens.prefix, tokens.counts)


@dataclass(frozen=True, slots=True)
class DtopShare(Reducer):
    """Before one block, the given share of the patches stays: those whose best class is least certain."""

    share: float
    """Share of the patches that stay. With 1 no patch leaves."""
    head: PatchClassifier
    block: int
    """Counted from 0."""
    point = ReductionPoint.BEFORE

    def needs(self, block: int) -> Needs | None:
        """No attention, at its block."""
        return Needs.NOTHING if self.share < 1 and block == self.block else None

    def remaining(self, tokens: int, prefix: int) -> int:
        """Tokens after its block, prefix included."""
        return prefix + math.ceil(self.share * (tokens - prefix))

    def macs(self, config: ViTConfig, patches: int, tokens: int, block: int) -> float:
        """Classes of the patches that are left."""
        return (tokens - config.prefix) * self.head.patch_macs(classify=True)

    def drops(self, block: int) -> bool:
        """At every block that it reduces."""
        return True

    def __call__(self, tokens: Tokens, attention: Attention, block: int) -> Assignment:
        """Keep the least certain patches, in image order."""
        scores, prefix = patch_scores(self.head, tokens, block), tokens.prefix
        # The logarithm of the best class's probability, without computing those of all classes.
        certainty = scores.amax(2) - scores.logsumexp(2)
        count = self.remaining(len(tokens), prefix) - prefix
        uncertain = certainty.topk(count, dim=1, largest=False).indices.sort(1).values + prefix
        prefix_positions = torch.arange(prefix, device=uncertain.device).expand(len(uncertain), -1)
        return Assignment(torch.cat([prefix_positions, uncertain], 1))


def patch_scores(head: PatchClassifier, tokens: Tokens, block: int) -> Tensor:
    """Class scores of each patch token after `block` blocks: (B, N - prefix, C) float32."""
    return head.classify_patches(head.read(tokens.x[:, tokens.prefix :], block)).float()


def uncertain_or_context(
    probabilities: Tensor, present: Tensor, threshold: float, context: int = CONTEXT
) -> Tensor:
    """True for the patches that stay: (B, P) bool.

    A patch stays when the probability of its best class is at most `threshold`, or when it is among the
    `context` most certain patches of that class. probabilities: (B, P, C). present: (B, P) bool, False for
    padding, which never stays.
    """
    best, best_class = probabilities.max(2)
    best = best.masked_fill(~present, -1)
    order = best.argsort(dim=1, descending=True, stable=True)
    one_hot = F.one_hot(best_class.gather(1, order), probabilities.shape[2])
    # The number of patches of the same class that are at least as certain, the patch itself included.
    sorted_rank = (one_hot.cumsum(1) * one_hot).sum(2)
    rank = torch.zeros_like(sorted_rank).scatter(1, order, sorted_rank)
    return present & ((best <= threshold) | (rank <= context))


def candidates(context: ReducerContext, image_size: int) -> Sequence[str]:
    """Arguments to measure on this model at this image size, in pixels: confidences, and shares of the
    patches that stay from the block after a quarter of the depth on. None without a dense head."""
    block = context.config.depth // 4 + 1
    shares = (f"{share}@{block}" for share in ("0.4", "0.3", "0.2"))
    return ("0.99", "0.95", "0.9", *shares) if context.dense is not None else ()


def build(argument: str | None, context: ReducerContext) -> Dtop | DtopShare:
    """`dtop:0.95`: patches with a class more probable than 0.95 leave after a third, a half and two thirds of
    the blocks. `dtop:0.3@4`: from block 4 on, counted from 1, the least certain 0.3 of the patches stay.
    `dtop:1` and `dtop:1@4` are the identity.

    Raises BadPlan for a model without a dense head or a class token, or for another argument.
    """
    match = re.fullmatch(r"([0-9]*\.?[0-9]+)(?:@([0-9]{1,3}))?", argument or "")
    value, depth = float(match[1]) if match else math.nan, context.config.depth
    block = int(match[2]) if match and match[2] else 0
    if not 0 <= value <= 1 or (block and value == 0) or block > depth or (match and match[2] and not block):
        raise BadPlan(
            f"dtop takes a probability, as in 0.95, or a share and a block of {depth}, as in 0.3@4; "
            f"got {argument or ''!r}"
        )
    if context.dense is None:
        raise BadPlan("dtop needs a dense head that classifies each patch, and this model has none")
    if not context.config.prefix:
        raise BadPlan("dtop pads shorter rows with the class token, and this model has none")
    if block:
        return DtopShare(value, context.dense, block - 1)
    return Dtop(value, context.dense, tuple(sorted({depth // 3, depth // 2, 2 * depth // 3})))
