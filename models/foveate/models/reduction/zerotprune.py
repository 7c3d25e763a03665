"""Zero-TPrune: drop tokens that are like a more important one, then those of little importance.

"Zero-TPrune: Zero-Shot Token Pruning through Leveraging of the Attention Graph in Pre-Trained
Transformers" (CVPR 2024), section 3. The paper searches layers and rates anew for every budget; here
one number scales a profile of our own. The paper's pruning layers stand between blocks; here they act as
other reducers do, after a block's attention and before its MLP.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.core.errors import BadPlan
from foveate.models.layers.matching import positions
from foveate.models.layers.reducer import Attention, Needs, Reducer, ReducerContext
from foveate.models.layers.tokens import Assignment, Tokens, gather_tokens

EXAMPLES: tuple[str | None, ...] = ("1.0", "0.7", "0.4")
"""Arguments the contract tests use; the first is the identity."""

PROFILE = ((0, 0.0), (2, 1 / 3), (5, 2 / 3), (8, 1.0), (10, 0.0))
"""Blocks of 12 that prune, and how much of the argument's pruning the I-stage does there."""
SIMILAR = 1 / 6
"""How much of it the S-stage does at each of them, of the patches that there were at first."""
LEAST, MOST = 0.01, 10.0
"""Heads whose scores vary less or more than this are left out (Variance-based Head Filter).

The variance is of scores that are 1 on average: over MOST, nearly everything is on an eleventh of the
tokens, 1 / (1 + MOST). The paper's range, 0.01 to 0.7, was searched for on DeiT, at a scale that it does not
tell. Scores that add up to 1, as page rank's do, never reach 0.01 with 100 tokens or more; those that are 1
on average exceed 0.7 in all heads but one, or in all, from the middle blocks on. So MOST was searched for
anew, on the shipped models.
"""


@dataclass(frozen=True, slots=True)
class Layer:
    """What one pruning layer does."""

    block: int
    """Counted from 0."""
    keep: float
    """Share of what the S-stage left that the I-stage keeps."""
    votes: int
    """How often the tokens vote on each other's importance in the I-stage."""


@dataclass(frozen=True, slots=True)
class ZeroTPrune(Reducer):
    """Each pruning layer ranks by one vote (I'), drops what is alike (S), then what is unimportant (I)."""

    similar: float
    """Share of the patches there were at first that each S-stage drops."""
    layers: tuple[Layer, ...]
    class_token: bool

    def needs(self, block: int) -> Needs | None:
        return None if self._layer(block) is None else Needs.FULL | Needs.KEYS

    def _layer(self, block: int) -> Layer | None:
        return next((layer for layer in self.layers if layer.block == block), None)

    def after(self, tokens: int, prefix: int, depth: int) -> tuple[int, ...]:
        first = patches = tokens - prefix
        counts = []
        for block in range(depth):
            layer = self._layer(block)
            if layer is not None:
                _, patches = self._left(layer, patches, first)
            counts.append(prefix + patches)
        return tuple(counts)

    def _left(self, layer: Layer, patches: int, first: int) -> tuple[int, int]:
        """Patch tokens left by the S-stage, which can drop half of them, and by the I-stage."""
        distinct = patches - min(round(self.similar * first), patches // 2)
        return distinct, math.ceil(layer.keep * distinct)

    def __call__(self, tokens: Tokens, attention: Attention, block: int) -> Assignment:
        layer = self._layer(block)
        if layer is None or attention.full is None or attention.keys is None:
            raise ValueError("zerotprune needs the full attention and the keys, in a block that prunes")
        prefix, length = tokens.prefix, len(tokens)
        distinct, important = self._left(layer, length - prefix, tokens.source.shape[1])
        graph, start = attention.full.float(), self._start(tokens)
        everyone = positions(start)
        always, ranked = everyone[:, :prefix], _importance(graph, start, everyone, 1, prefix)
        kept = torch.cat([always, prefix + _distinct(attention.keys, ranked, distinct)], dim=1)
        if important < distinct:
            scores = _importance(graph, start, kept, layer.votes, prefix)
            best = scores.argsort(dim=1, descending=True, stable=True)[:, :important].sort(dim=1).values
            kept = kept.gather(1, torch.cat([always, prefix + best], dim=1))
        return Assignment(kept)

    def _start(self, tokens: Tokens) -> Tensor:
        """Scores before the first vote (B, N): equal, but sqrt(N) times as much for a class token."""
        start = torch.ones(tokens.counts.shape, device=tokens.x.device)
        if self.class_token:
            start[:, 0] = math.sqrt(len(tokens))
        return start


def _importance(graph: Tensor, start: Tensor, among: Tensor, votes: int, prefix: int) -> Tensor:
    """Importance of the patch tokens among those at the K positions `among`, in their order: (B, K - prefix)
    float32.

    Weighted Page Rank (section 3.2): each token votes for others by its attention (B, H, N, N), as it
    would be if there were no others, and the votes of important tokens, which start as (B, N), count for
    more. Heads are joined by the root of the mean of squares (Emphasizing Informative Region), without
    those whose scores tell nothing (Variance-based Head Filter), unless none does tell.
    """
    # Silencing the others leaves the graph where it is: picking rows and columns of it costs far more.
    present = torch.zeros_like(start).scatter(1, among, 1.0)[:, None, None, :]
    heard = torch.matmul(graph, present.mT).mT.clamp(min=torch.finfo(graph.dtype).tiny)
    voices, scores = present / heard, start[:, None, None, :]
    for _ in range(votes):
        scores = torch.matmul(scores * voices, graph)
    patches = among[:, None, prefix:].expand(-1, graph.shape[1], -1)
    scores = scores.squeeze(2).gather(2, patches)
    trusted = _trusted(scores)
    trusted = (trusted | ~trusted.any(dim=1, keepdim=True)).to(scores.dtype)
    return ((scores.square() * trusted.unsqueeze(2)).sum(1) / trusted.sum(1, keepdim=True)).sqrt()


def _trusted(scores: Tensor) -> Tensor:
    """Heads whose scores (B, H, P) are neither almost equal nor all on a few tokens: (B, H) bool.

    The variance is that of scores that are 1 on average.
    """
    mean = scores.mean(dim=2, keepdim=True).clamp(min=torch.finfo(scores.dtype).tiny)
    variance = (scores / mean).var(dim=2, correction=0)
    return (variance >= LEAST) & (variance <= MOST)


def _distinct(keys: Tensor, importance: Tensor, count: int) -> Tensor:
    """The S-stage: which `count` patch tokens are left, in order: (B, count) int64.

    Of the less important half, those are dropped whose keys (B, H, N, d), all heads together, are most
    like those of some token of the more important half.
    """
    patches = importance.shape[1]
    vectors = keys[:, :, -patches:].transpose(1, 2).flatten(2).float()
    order = importance.argsort(dim=1, descending=True, stable=True)
    vectors = gather_tokens(F.normalize(vectors, dim=2), order)
    half = patches - patches // 2
    likeness = torch.matmul(vectors[:, half:], vectors[:, :half].transpose(1, 2)).amax(2)
    spared = likeness.argsort(dim=1, descending=True, stable=True)[:, patches - count :]
    return torch.cat([order[:, :half], order[:, half:].gather(1, spared)], dim=1).sort(dim=1).values


def _layers(keep: float, depth: int) -> Iterable[Layer]:
    """The profile at another depth; the paper votes 30 to 50 times early, 5 to 10 times, and once late."""
    strengths: dict[int, float] = {}
    for block, strength in PROFILE:
        place = block * depth // 12
        strengths[place] = max(strength, strengths.get(place, 0))
    for block, strength in strengths.items():
        votes = 30 if 4 * block < depth else 5 if 4 * block < 3 * depth else 1
        yield Layer(block, 1 - strength * (1 - keep), votes)


def build(argument: str | None, context: ReducerContext) -> ZeroTPrune:
    """`zerotprune:0.7`. The blocks that prune are the 1st, 3rd, 6th, 9th and 11th of 12, in proportion
    at other depths.

    With KEEP, the I-stage keeps the share KEEP of the tokens at the 9th, and at the 3rd and 6th it drops
    a third and two thirds as large a share; each S-stage drops (1 - KEEP) / 6 of the patches there were
    at first. `zerotprune:0.7` takes DeiT-S from 4.6 to the paper's 3.0 GFLOPs. Without a class token
    all tokens start equal (the paper's Zero-TPrune-uni). Raises BadPlan for a keep rate that is none.
    """
    keep = float(argument) if argument and re.fullmatch(r"[0-9]*\.?[0-9]+", argument) else math.nan
    if not 0 < keep <= 1:
        raise BadPlan(
            f"zerotprune takes a keep rate above 0 and at most 1, as in 0.7; got {argument or ''!r}"
        )
    config = context.config
    layers = () if keep == 1 else tuple(_layers(keep, config.depth))
    return ZeroTPrune(SIMILAR * (1 - keep), layers, config.class_token)
