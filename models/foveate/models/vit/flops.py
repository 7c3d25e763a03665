"""Multiply-adds of one image under a resolved plan."""

from collections.abc import Sequence

from torch import nn

from foveate.models.layers.config import block_macs, classifier_macs, embedding_macs
from foveate.models.vit.vit import ElasticViT, ResolvedPlan


def flops(
    model: ElasticViT, image_size: int, resolved: ResolvedPlan, depth: int, after: Sequence[int] = ()
) -> float:
    """Billions of multiply-adds of an image that leaves after `depth` blocks.

    image_size: in pixels. after: the tokens after each block, for a reducer whose count differs between
    images.
    """
    config = model.config
    tokens = config.patches(image_size) + config.prefix
    counts = after or resolved.reducer.after(tokens, config.prefix, depth)
    total = embedding_macs(config, image_size)
    total += block_macs(config, tokens, counts[:depth], resolved.reducer.point, resolved.heads)
    side = image_size // config.patch_size
    if model.dense is not None:
        return (total + model.dense.macs(side)) / 1e9
    used_heads = [
        head for head in map(int, model.exit_heads) if head == depth or (resolved.exit_rule and head < depth)
    ]
    total += sum(exit_macs(model.exit_heads[str(head)], side) for head in used_heads)
    if depth not in used_heads:
        total += classifier_macs(config)
    return total / 1e9


def exit_macs(head: nn.Module, side: int) -> float:
    """Multiply-adds of an exit head on a grid of side x side patches; 0 for a head without `macs`."""
    macs = getattr(head, "macs", None)
    return float(macs(side)) if callable(macs) else 0.0
