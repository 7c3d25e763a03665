"""Calibration of the thresholds at which tokens merge inside a tower.

"DyMU: Dynamic Merging and Virtual Unmerging for Efficient VLMs" (arXiv 2504.17040), section 3.1: block by
block, the edges of a large batch of images are ranked together, and the threshold lets through as many as
leave the wanted number of tokens on average.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from foveate.models.layers.matching import positions
from foveate.models.layers.reducer import Attention, Needs, Reducer
from foveate.models.layers.threshold_merging import ALWAYS, NEVER, MergeThresholds, ThresholdMerging, edges
from foveate.models.layers.tokens import Assignment, Tokens
from foveate.models.vit.vit import ElasticViT


@dataclass(slots=True)
class EdgeRecorder(Reducer):
    """Keeps all tokens, and records the scores of the edges along which they could merge."""

    fewest: int
    scores: list[Tensor] = field(default_factory=list)
    proportional = True

    def needs(self, block: int) -> Needs | None:
        """The keys, at every block."""
        return Needs.KEYS

    def __call__(self, tokens: Tokens, attention: Attention, block: int) -> Assignment:
        """All tokens. Raises ValueError without the keys."""
        if attention.keys is None:
            raise ValueError("the recorder needs the keys")
        best = edges(tokens, attention.keys, self.fewest)
        if best is not None:
            self.scores.append(best.scores[best.scores.isfinite()])
        return Assignment(positions(tokens.counts), counts=tokens.counts)


@torch.inference_mode()
def calibrate(tower: ElasticViT, batches: Sequence[Tensor], count: int, first: int = 0) -> MergeThresholds:
    """Thresholds that leave `count` patch tokens on average behind the last block.

    batches: normalised images (B, 3, S, S), all of the size that the plan has. first: the first block that
    merges, counted from 0; from there on every block merges equally many on average, where they suffice.
    Every picture keeps `count` tokens at least, so that those with more decide how far the average is above.
    Raises ValueError for a tower without a prefix token, or images without patches enough.
    """
    states = [tower.embed(batch) for batch in batches]
    depth, prefix = tower.config.depth, tower.config.prefix
    patches = len(states[0]) - prefix if states else 0
    if not prefix or not 0 <= first < depth or patches < count:
        raise ValueError(
            f"merging to {count} tokens from block {first} on needs a class token, {count} patches and more "
            f"blocks; this tower has {prefix} prefix tokens, {patches} patches and {depth} blocks"
        )
    thresholds: list[float] = []
    averages: list[float] = []
    images = sum(len(state.x) for state in states)
    for block in range(depth):
        recorder = EdgeRecorder(count)
        wanted = patches - (patches - count) * max(block - first + 1, 0) / (depth - first)
        excess = round(_total(states) - images * wanted)
        if excess > 0:
            for state in states:
                tower.blocks[block](state, recorder, block)
        thresholds.append(_threshold(recorder.scores, excess))
        merging = ThresholdMerging((NEVER,) * block + (thresholds[-1],), count)
        states = [tower.blocks[block](state, merging, block) for state in states]
        averages.append(_total(states) / images)
    return MergeThresholds(count, tuple(thresholds), tuple(averages))


def _total(states: Sequence[Tokens]) -> int:
    """Patch tokens of all images."""
    return sum(int((state.counts[:, state.prefix :] > 0).sum()) for state in states)


def _threshold(scores: Sequence[Tensor], number: int) -> float:
    """The threshold that `number` of the scores exceed, as far as equal scores allow."""
    if number <= 0 or not scores:
        return NEVER
    ranked = torch.cat(list(scores)).sort(descending=True).values
    if number >= len(ranked):
        return ALWAYS
    return float((ranked[number - 1].double() + ranked[number].double()) / 2)
