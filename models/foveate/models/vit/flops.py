"""What one picture's way through a trunk costs."""

from collections.abc import Sequence

from torch import nn

from foveate.models.layers.config import block_macs, classifier_macs, embedding_macs
from foveate.models.vit.vit import ElasticViT, ResolvedPlan


def flops(
    model: ElasticViT, image_size: int, steps: ResolvedPlan, depth: int, after: Sequence[int] = ()
) -> float:
    """Billions of multiply-adds of a picture that leaves after `depth` blocks.

    `after` holds the tokens that were left after each block, where the reducer's count differs from
    picture to picture.
    """
    config = model.config
    tokens = config.patches(image_size) + config.prefix
    counts = after or steps.reducer.after(tokens, config.prefix, depth)
    total = embedding_macs(config, image_size)
    total += block_macs(config, tokens, counts[:depth], steps.reducer.point, steps.heads)
    if model.dense is not None:
        return (total + model.dense.macs(image_size // config.patch_size)) / 1e9
    asked = [
        head for head in map(int, model.exit_heads) if head == depth or (steps.exit_rule and head < depth)
    ]
    total += sum(exit_macs(model.exit_heads[str(head)], image_size // config.patch_size) for head in asked)
    if depth not in asked:
        total += classifier_macs(config)
    return total / 1e9


def exit_macs(head: nn.Module, side: int) -> float:
    """Multiply-adds of an exit head at a grid of side x side patches; of one that tells none, nothing."""
    macs = getattr(head, "macs", None)
    return float(macs(side)) if callable(macs) else 0.0
