"""Zero-TPrune: drop tokens that are similar to a more important one, then tokens of low importance.

"Zero-TPrune: Zero-Shot Token Pruning through Leveraging of the Attention Graph in Pre-Trained
Transformers" (CVPR 2024), section 3. The paper searches layers and rates again for every budget; here
one number scales a profile of our own. The paper's pruning layers are placed between blocks; here they act as
other reducers do, after a block's attention and before its MLP.

The profile was chosen on training scenes, for a small network that was trained with every patch. There, page
rank with many votes tells nothing in the first third of the blocks: a patch of the object outranks one of the
background with a probability of 0.50 after the first block, 0.36 after the second, and 0.90 after the third
of eight. So the early layers only have the S-stage, and the first layer with an I-stage stands in the middle.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.core.errors import BadPlan
from foveate.models.layers.config import ViTConfig
from foveate.models.layers.matching import pair_count, positions
from foveate.models.layers.reducer import Attention, Needs, Reducer, ReducerContext
from foveate.models.layers.tokens import Assignment, Tokens, gather_tokens

EXAMPLES: tuple[str | None, ...] = ("1.0", "0.7", "0.4")
"""Arguments the contract tests use; the first is the identity."""

PROFILE = ((0, 0.0), (2, 0.0), (5, 0.8), (8, 1.0), (10, 0.0))
"""Blocks of 12 that prune, counted from 0, and the share of the argument's pruning that the I-stage does."""
SIMILAR = 1 / 2
"""The share of the argument's pruning that each S-stage does, relative to the patches of the input."""
VOTES = 5
"""Rounds of page rank in the I-stage: the paper's number for the middle blocks, where the I-stages stand."""
MIN_VARIANCE, MAX_VARIANCE = 0.01, 10.0
"""Heads whose scores have a variance outside this range are ignored (Variance-based Head Filter).

The scores are scaled to a mean of 1. At MAX_VARIANCE, nearly all of the score is on an eleventh of the
tokens, 1 / (1 + MAX_VARIANCE). The paper's range, 0.01 to 0.7, was searched for on DeiT, at a scale that the
paper does not state. Scores with a sum of 1, as in page rank, never reach 0.01 with 100 tokens or more.
Scores with a mean of 1 exceed 0.7 in all heads but one, or in all heads, from the middle blocks on. So
MAX_VARIANCE was searched for again, on the shipped models.
"""


@dataclass(frozen=True, slots=True)
class PruningLayer:
    """One pruning layer: an S-stage and an I-stage."""

    block: int
    """The block in which it acts, counted from 0."""
    keep: float
    """Share of the S-stage's remaining tokens that the I-stage keeps. With 1 there is no I-stage."""


@dataclass(frozen=True, slots=True)
class ZeroTPrune(Reducer):
    """Each pruning layer ranks tokens by one vote (I'), drops similar ones (S), then unimportant ones (I)."""

    similar: float
    """Share of the input's patches that each S-stage drops."""
    layers: tuple[PruningLayer, ...]
    class_token: bool
    """The first prefix token is a class token."""

    def needs(self, block: int) -> Needs | None:
        """The full attention and the keys, in blocks with a pruning layer."""
        return None if self._layer(block) is None else Needs.FULL | Needs.KEYS

    def _layer(self, block: int) -> PruningLayer | None:
        """The pruning layer of this block."""
        return next((layer for layer in self.layers if layer.block == block), None)

    def after(self, tokens: int, prefix: int, depth: int) -> tuple[int, ...]:
        """Tokens after each block, prefix included."""
        input_patches = patches = tokens - prefix
        counts = []
        for block in range(depth):
            layer = self._layer(block)
            if layer is not None:
                _, patches = self._kept(layer, patches, input_patches)
            counts.append(prefix + patches)
        return tuple(counts)

    def _kept(self, layer: PruningLayer, patches: int, input_patches: int) -> tuple[int, int]:
        """Patch tokens after the S-stage, which can drop at most half of them, and after the I-stage."""
        distinct = patches - min(round(self.similar * input_patches), patches // 2)
        return distinct, math.ceil(layer.keep * distinct)

    def macs(self, config: ViTConfig, patches: int, tokens: int, block: int) -> float:
        """The votes of both rankings, and the similarities of the S-stage."""
        layer, left = self._layer(block), tokens - config.prefix
        if layer is None:
            return 0.0
        distinct, important = self._kept(layer, left, patches)
        # A ranking is one product for the sums of the rows and one for each vote.
        products = 2 + (1 + VOTES if important < distinct else 0)
        return products * config.heads * tokens**2 + pair_count(left) * config.width

    def drops(self, block: int) -> bool:
        """At every block that it reduces."""
        return True

    def __call__(self, tokens: Tokens, attention: Attention, block: int) -> Assignment:
        """Run the block's pruning layer. Tokens stay in image order."""
        layer = self._layer(block)
        if layer is None or attention.full is None or attention.keys is None:
            raise ValueError("zerotprune needs the full attention and the keys, in a block that prunes")
        prefix, length = tokens.prefix, len(tokens)
        distinct, important = self._kept(layer, length - prefix, tokens.source.shape[1])
        graph, start = attention.full.float(), self._start(tokens)
        index = positions(start)
        prefix_positions, ranked = index[:, :prefix], _importance(graph, start, index, 1, prefix)
        kept = torch.cat([prefix_positions, prefix + _distinct(attention.keys, ranked, distinct)], dim=1)
        if important < distinct:
            scores = _importance(graph, start, kept, VOTES, prefix)
            best = scores.argsort(dim=1, descending=True, stable=True)[:, :important].sort(dim=1).values
            kept = kept.gather(1, torch.cat([prefix_positions, prefix + best], dim=1))
        return Assignment(kept)

    def _start(self, tokens: Tokens) -> Tensor:
        """Scores before the first vote (B, N): 1 for each token, sqrt(N) for a class token."""
        start = torch.ones(tokens.counts.shape, device=tokens.x.device)
        if self.class_token:
            start[:, 0] = math.sqrt(len(tokens))
        return start


def _importance(graph: Tensor, start: Tensor, among: Tensor, votes: int, prefix: int) -> Tensor:
    """Importance of the patch tokens among those at the positions `among` (B, K), in their order.

    (B, K - prefix) float32. graph: attention (B, H, N, N). start: scores before the first vote (B, N).

    Weighted Page Rank (section 3.2): each token votes for others by its attention, renormalised over the
    tokens in `among`, and votes of important tokens count for more. Heads are joined by the root mean square
    (Emphasizing Informative Region). Heads with uninformative scores are ignored (Variance-based Head
    Filter), unless all heads are uninformative.
    """
    # Zero votes of the other tokens leave the graph in place. Selecting its rows and columns costs far more.
    present = torch.zeros_like(start).scatter(1, among, 1.0)[:, None, None, :]
    row_sums = torch.matmul(graph, present.mT).mT.clamp(min=torch.finfo(graph.dtype).tiny)
    vote_weights, scores = present / row_sums, start[:, None, None, :]
    for _ in range(votes):
        scores = torch.matmul(scores * vote_weights, graph)
    patches = among[:, None, prefix:].expand(-1, graph.shape[1], -1)
    scores = scores.squeeze(2).gather(2, patches)
    informative = _informative(scores)
    used = (informative | ~informative.any(dim=1, keepdim=True)).to(scores.dtype)
    return ((scores.square() * used.unsqueeze(2)).sum(1) / used.sum(1, keepdim=True)).sqrt()


def _informative(scores: Tensor) -> Tensor:
    """True for heads whose scores (B, H, P) are neither almost equal nor all on a few tokens: (B, H) bool.

    The scores are scaled to a mean of 1 before their variance is taken.
    """
    mean = scores.mean(dim=2, keepdim=True).clamp(min=torch.finfo(scores.dtype).tiny)
    variance = (scores / mean).var(dim=2, correction=0)
    return (variance >= MIN_VARIANCE) & (variance <= MAX_VARIANCE)


def _distinct(keys: Tensor, importance: Tensor, count: int) -> Tensor:
    """The S-stage: the `count` patch tokens that stay, in image order: (B, count) int64.

    It drops tokens of the less important half, those whose keys (B, H, N, d), all heads together, are most
    similar to the keys of a token of the more important half.
    """
    patches = importance.shape[1]
    vectors = keys[:, :, -patches:].transpose(1, 2).flatten(2).float()
    order = importance.argsort(dim=1, descending=True, stable=True)
    vectors = gather_tokens(F.normalize(vectors, dim=2), order)
    half = patches - patches // 2
    similarity = torch.matmul(vectors[:, half:], vectors[:, :half].transpose(1, 2)).amax(2)
    distinct = similarity.argsort(dim=1, descending=True, stable=True)[:, patches - count :]
    return torch.cat([order[:, :half], order[:, half:].gather(1, distinct)], dim=1).sort(dim=1).values


def _layers(keep: float, depth: int) -> Iterable[PruningLayer]:
    """The profile at this depth."""
    strengths: dict[int, float] = {}
    for profiled, strength in PROFILE:
        block = profiled * depth // 12
        strengths[block] = max(strength, strengths.get(block, 0))
    for block, strength in strengths.items():
        yield PruningLayer(block, 1 - strength * (1 - keep))


def candidates(context: ReducerContext, image_size: int) -> Sequence[str]:
    """Arguments to measure on this model at this image size, in pixels."""
    return ("0.9", "0.8", "0.7", "0.6", "0.5", "0.4", "0.3")


def build(argument: str | None, context: ReducerContext) -> ZeroTPrune:
    """`zerotprune:0.7`. It prunes at blocks 1, 3, 6, 9 and 11 of 12, counted from 1, and in proportion at
    other depths.

    With the argument KEEP, the I-stage keeps the share KEEP of the tokens at the 9th block, and drops 0.8
    times as large a share at the 6th; the other layers have no I-stage. Each S-stage drops (1 - KEEP) / 2 of
    the input's patches, at most half of those that are left. `zerotprune:0.82` takes DeiT-S from 4.6 to the
    paper's 3.0 GFLOPs. Without a class token all tokens start with equal scores (the paper's
    Zero-TPrune-uni). Raises BadPlan for an argument that is not a keep rate.
    """
    keep = float(argument) if argument and re.fullmatch(r"[0-9]*\.?[0-9]+", argument) else math.nan
    if not 0 < keep <= 1:
        raise BadPlan(
            f"zerotprune takes a keep rate above 0 and at most 1, as in 0.7; got {argument or ''!r}"
        )
    config = context.config
    layers = () if keep == 1 else tuple(_layers(keep, config.depth))
    return ZeroTPrune(SIMILAR * (1 - keep), layers, config.class_token)
