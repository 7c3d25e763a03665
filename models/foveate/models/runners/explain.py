"""What was looked at: which patches a plan kept, merged or dropped, and where each picture left."""

import torch
from torch import Tensor

from foveate.core.outcome import Explanation, ReductionStage
from foveate.models.layers.tokens import Tokens
from foveate.models.vit.vit import ElasticViT, ResolvedPlan


@torch.inference_mode()
def explain(model: ElasticViT, images: Tensor, steps: ResolvedPlan) -> list[Explanation]:
    """Run images (B, 3, S, S), normalised, and keep account of the tokens behind every block."""
    side = images.shape[-1] // model.config.patch_size
    start = model.embed(images)
    last = [(len(start), tuple(range(side * side)))] * len(images)
    stages: list[list[ReductionStage]] = [[] for _ in images]

    def record(rows: Tensor, block: int, tokens: Tokens) -> None:
        states = zip(tokens.present.tolist(), map(tuple, groups(tokens).tolist()), strict=True)
        for row, state in zip(rows.tolist(), states, strict=True):
            if state != last[row]:
                last[row] = state
                stages[row].append(ReductionStage(block, *state))

    layers = model.encode(start, steps, record).exit_layer.tolist()
    return [Explanation((side, side), tuple(seen), layer) for seen, layer in zip(stages, layers, strict=True)]


def groups(tokens: Tokens) -> Tensor:
    """For each patch the smallest patch that shares its token: (B, P) int64, -1 once it was dropped."""
    source = tokens.source
    patches = torch.arange(source.shape[1], device=source.device).expand_as(source)
    # One slot more than there are tokens: the dropped ones meet in the first.
    slots = source.new_full((len(source), len(tokens) + 1), source.shape[1])
    first = slots.scatter_reduce(1, source + 1, patches, "amin").gather(1, source + 1)
    return first.where(source >= 0, -1)
