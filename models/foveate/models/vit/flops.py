"""Multiply-adds of one image under a resolved plan."""

from collections.abc import Sequence

from torch import nn

from foveate.models.layers.config import block_macs, classifier_macs, embedding_macs
from foveate.models.layers.reducer import reducer_macs
from foveate.models.vit.vit import ElasticViT, ResolvedPlan


def flops(
    model: ElasticViT, image_size: int, resolved: ResolvedPlan, depth: int, after: Sequence[int] = ()
) -> float:
    """Billions of multiply-adds of an image that leaves after `depth` blocks.

    image_size: in pixels. after: the tokens after each block, for a reducer whose count differs between
    images. The count covers the trunk, the heads that run, and the reducer's own matrix products.
    """
    config = model.config
    tokens = config.patches(image_size) + config.prefix
    counts = tuple(after or resolved.reducer.after(tokens, config.prefix, depth))[:depth]
    total = embedding_macs(config, image_size)
    total += block_macs(config, tokens, counts, resolved.reducer.point)
    total += reducer_macs(resolved.reducer, config, tokens, counts)
    side = image_size // config.patch_size
    if model.dense is not None:
        return (total + model.dense.macs(side) + _further_reads(model, resolved, tokens, counts)) / 1e9
    used_heads = [
        head for head in map(int, model.exit_heads) if head == depth or (resolved.exit_rule and head < depth)
    ]
    total += sum(exit_macs(model.exit_heads[str(head)], side, counts[head - 1]) for head in used_heads)
    if depth not in used_heads:
        total += classifier_macs(config, counts[-1] if counts else tokens)
    return total / 1e9


def _further_reads(model: ElasticViT, resolved: ResolvedPlan, tokens: int, counts: Sequence[int]) -> float:
    """Multiply-adds of a dense head's readings, beyond one of each patch.

    It reads all tokens before patches leave, and at the end the tokens that are left.
    """
    if model.dense is None:
        return 0.0
    entering, reducer = (tokens, *counts), resolved.reducer
    leaving = [
        block for block in range(len(counts)) if reducer.needs(block) is not None and reducer.drops(block)
    ]
    reads = sum(entering[block] for block in leaving) + entering[-1] - tokens
    return reads * model.dense.patch_macs(classify=False)


def exit_macs(head: nn.Module, side: int, tokens: int) -> float:
    """Multiply-adds of an exit head on `tokens` tokens of a grid of side x side patches.

    0 for a head without `macs`.
    """
    macs = getattr(head, "macs", None)
    return float(macs(side, tokens)) if callable(macs) else 0.0
