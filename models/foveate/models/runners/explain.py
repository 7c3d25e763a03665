"""Explanations: which patches a plan kept, merged or dropped, and after which block each image left."""

import torch
from torch import Tensor

from foveate.core.outcome import Explanation, ReductionStage
from foveate.models.layers.tokens import Tokens
from foveate.models.vit.vit import ElasticViT, ResolvedPlan


@torch.inference_mode()
def explain(model: ElasticViT, images: Tensor, resolved: ResolvedPlan) -> list[Explanation]:
    """Run normalised images (B, 3, S, S) and record the tokens after each block.

    Returns one explanation per image. Its stages are the blocks in which the image's tokens changed.
    """
    side = images.shape[-1] // model.config.patch_size
    start = model.embed(images)
    last = [(len(start), tuple(range(side * side)))] * len(images)
    stages: list[list[ReductionStage]] = [[] for _ in images]

    def record(rows: Tensor, block: int, tokens: Tokens) -> None:
        states = zip(tokens.present.tolist(), map(tuple, patch_groups(tokens).tolist()), strict=True)
        for row, state in zip(rows.tolist(), states, strict=True):
            if state != last[row]:
                last[row] = state
                stages[row].append(ReductionStage(block, *state))

    layers = model.encode(start, resolved, record).exit_layer.tolist()
    return [
        Explanation((side, side), tuple(changes), layer)
        for changes, layer in zip(stages, layers, strict=True)
    ]


def patch_groups(tokens: Tokens) -> Tensor:
    """For each patch the smallest patch number with the same token: (B, P) int64; -1 for dropped patches."""
    source = tokens.source
    patches = torch.arange(source.shape[1], device=source.device).expand_as(source)
    # One slot more than there are tokens: all dropped patches share the first.
    slots = source.new_full((len(source), len(tokens) + 1), source.shape[1])
    first = slots.scatter_reduce(1, source + 1, patches, "amin").gather(1, source + 1)
    return first.where(source >= 0, -1)
