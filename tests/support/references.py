"""Shared by tests of reducers: small random models, and a reference ViT for one image and one head at a time.

Each test adds the reference of its paper: the first half of a block, attention and reduction.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from foveate.models import reduction
from foveate.models.layers.blocks import Block
from foveate.models.layers.config import ViTConfig, gmacs
from foveate.models.layers.reducer import UntrainedContext
from foveate.models.layers.tokens import Tokens
from foveate.models.vit.vit import ElasticViT, ResolvedPlan, TrunkOutput

PLAIN = ViTConfig(image_size=96, width=48, depth=6, heads=3, classes=10)
TWO_PREFIX = replace(PLAIN, distilled=True, layer_scale=True)
REGISTERS = replace(PLAIN, registers=3, embed_prefix=False)
MERGED = {
    "odd count": PLAIN,
    "even count": replace(PLAIN, image_size=80),
    "two prefix": TWO_PREFIX,
    "registers": replace(REGISTERS, image_size=80, qk_norm=True),
    "no prefix": replace(PLAIN, image_size=80, class_token=False, pool="avg", fc_norm=True),
}
"""Configurations for reducers that pair tokens by their positions and need no class token."""


def build(config: ViTConfig, sharpness: float = 0.3) -> ElasticViT:
    """A random model. The larger `sharpness`, the less uniform its attention."""
    model, generator = ElasticViT(config).eval(), torch.Generator().manual_seed(7)
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        gain = p.ndim == 1 and not name.endswith("bias")
        scale = sharpness if name.endswith("qkv.weight") else 0.15
        p.copy_(1 + 0.1 * noise if gain else scale * noise)
    return model


def random_images(config: ViTConfig, batch: int = 3) -> Tensor:
    return torch.randn(
        batch, 3, config.image_size, config.image_size, generator=torch.Generator().manual_seed(3)
    )


def run(model: ElasticViT, images: Tensor, spec: str) -> TrunkOutput:
    out: TrunkOutput = model(images, ResolvedPlan(reduction.create(spec, model), model.config.depth))
    return out


def cost(config: ViTConfig, spec: str) -> float:
    """Predicted GFLOPs of an image of the model's own size."""
    reducer, start = (
        reduction.create(spec, UntrainedContext(config)),
        config.patches(config.image_size) + config.prefix,
    )
    return gmacs(config, config.image_size, reducer.after(start, config.prefix, config.depth), reducer.point)


def counted_cost(config: ViTConfig, spec: str) -> float:
    """Counted GFLOPs of the matrix products that run, including the reducer's own."""
    with FlopCounterMode(display=False) as counter:
        run(ElasticViT(config).eval(), torch.zeros(1, 3, config.image_size, config.image_size), spec)
    # The counter counts a multiplication and its addition as two.
    flops: int = counter.get_total_flops()
    return flops / 2e9


@dataclass(frozen=True)
class Token:
    """One token of one image."""

    x: Tensor
    size: float = 1.0
    """Its weight in proportional attention (ToMe, equation 1)."""
    members: frozenset[int] = frozenset()
    """Positions of the input tokens that it represents."""


@dataclass(frozen=True)
class BlockAttention:
    """One block's attention, after its softmax."""

    weights: Tensor
    """(H, N, N)"""
    keys: Tensor
    """(H, N, d)"""
    values: Tensor
    """(H, N, d)"""


FirstHalf = Callable[[Block, list[Token], int], list[Token]]
"""Maps a block, its tokens, and its number, counted from 0, to the tokens before its MLP."""


def features(tokens: Sequence[Token]) -> Tensor:
    return torch.stack([token.x for token in tokens])


def block_attention(block: Block, tokens: Sequence[Token]) -> BlockAttention:
    attn, x = block.attn, block.norm1(features(tokens))
    sizes = torch.tensor([token.size for token in tokens])
    width = x.shape[1] // attn.heads
    q, k, v = F.linear(x, attn.qkv.weight, attn.qkv.bias).chunk(3, dim=1)
    weights, keys, values = [], [], []
    for h in range(attn.heads):
        part = slice(h * width, (h + 1) * width)
        keys.append(attn.k_norm(k[:, part]))
        values.append(v[:, part])
        scores = torch.exp(attn.q_norm(q[:, part]) @ keys[h].T / math.sqrt(width)) * sizes
        weights.append(scores / scores.sum(dim=1, keepdim=True))
    return BlockAttention(torch.stack(weights), torch.stack(keys), torch.stack(values))


def add_update(tokens: Sequence[Token], update: Tensor) -> list[Token]:
    return [replace(token, x=token.x + row) for token, row in zip(tokens, update, strict=True)]


def add_attention(block: Block, tokens: Sequence[Token], attention: BlockAttention) -> list[Token]:
    heads = [weights @ values for weights, values in zip(attention.weights, attention.values, strict=True)]
    return add_update(tokens, block.ls1(block.attn.proj(torch.cat(heads, dim=1))))


def tokens_per_block(model: ElasticViT, image: Tensor, first_half: FirstHalf) -> list[list[Token]]:
    """The tokens of one image (3, S, S) after each block."""
    embedded, per_block = model.embed(image.unsqueeze(0)).x[0], []
    tokens = [Token(x, members=frozenset({i})) for i, x in enumerate(embedded)]
    for index, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        tokens = first_half(block, tokens, index)
        tokens = add_update(tokens, block.ls2(block.mlp(block.norm2(features(tokens)))))
        per_block.append(tokens)
    return per_block


def classify(model: ElasticViT, tokens: Sequence[Token]) -> Tensor:
    """Logits (C,) of the tokens after the last block."""
    config, x = model.config, model.norm(features(tokens))
    pooled = x[0]
    if config.pool == "avg":
        sizes = [token.size for token in tokens[config.prefix :]]
        each = [size * row for size, row in zip(sizes, x[config.prefix :], strict=True)]
        pooled = torch.stack(each).sum(0) / sum(sizes)
    logits: Tensor = model.head(model.fc_norm(pooled))
    return (logits + model.head_dist(x[1])) / 2 if config.distilled else logits


def assert_same_logits(model: ElasticViT, images: Tensor, spec: str, expected: Sequence[Tensor]) -> None:
    logits = torch.stack(list(expected))
    gap = (run(model, images, spec).logits - logits).abs().max()
    assert gap < 1e-4, f"{spec} differs by {gap}"
    # The comparison is only meaningful where the reduction changes the logits.
    assert (run(model, images, "none").logits - logits).abs().max() > 1e-2, f"{spec} changes nothing"


def assert_same_tokens(tokens: Tokens, row: int, expected: Sequence[Token]) -> None:
    """Compare features, counts and source map of one image, token by token in order, then padding."""
    result, padding = tokens.x[row, : len(expected)], len(tokens) - len(expected)
    gap = (result - features(expected)).abs().max()
    assert gap < 1e-4, f"features differ by {gap}"
    sizes = [token.size for token in expected]
    assert tokens.counts[row].tolist() == sizes + [0.0] * padding, f"counts should be {sizes}"
    slots = {member: slot for slot, token in enumerate(expected) for member in token.members}
    positions = range(tokens.prefix, tokens.prefix + tokens.source.shape[1])
    source = [slots.get(position, -1) for position in positions]
    assert tokens.source[row].tolist() == source, f"the source map should be {source}"


def assert_same_tokens_per_block(
    model: ElasticViT, images: Tensor, spec: str, expected: Sequence[Sequence[Sequence[Token]]]
) -> None:
    """Compare each image's tokens after every block: one batch against images that run alone."""
    reducer, tokens = reduction.create(spec, model), model.embed(images)
    for index, block in enumerate(model.blocks):
        tokens = block(tokens, reducer, index)
        assert len(tokens) == max(len(per_block[index]) for per_block in expected)
        for row, per_block in enumerate(expected):
            assert_same_tokens(tokens, row, per_block[index])
