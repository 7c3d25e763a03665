"""The shape of a vision transformer, and what a plan costs on it."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Literal

Activation = Literal["gelu", "gelu_tanh", "quick_gelu"]


class ReductionPoint(Enum):
    """Where in its block a token reducer acts."""

    MIDDLE = "middle"
    """Between attention and MLP, seeing this block's attention (EViT, ToMe)."""
    BEFORE = "before"
    """Before the block, seeing features only (IA-RED)."""
    AHEAD = "ahead"
    """Before the block, seeing its attention, which is fused with the tokens and then used for them
    (MCTF's one-step-ahead attention)."""


@dataclass(frozen=True, slots=True)
class ViTConfig:
    """Everything that fixes the parameters of a plain ViT; field names follow timm's arguments."""

    image_size: int = 224
    patch_size: int = 16
    width: int = 192
    depth: int = 12
    heads: int = 3
    mlp_ratio: float = 4.0
    classes: int = 1000
    """0: no classifier; the answer is the pooled feature."""
    class_token: bool = True
    distilled: bool = False
    """A second prefix token with its own head, averaged with the first's (DeiT, section 4)."""
    registers: int = 0
    embed_prefix: bool = True
    """Position embeddings cover the prefix tokens too (timm: not no_embed_class)."""
    pre_norm: bool = False
    """A norm before the first block, as in CLIP."""
    layer_scale: bool = False
    qkv_bias: bool = True
    qk_norm: bool = False
    patch_bias: bool = True
    final_norm: bool = True
    pool: Literal["token", "avg"] = "token"
    fc_norm: bool = False
    eps: float = 1e-6
    activation: Activation = "gelu"

    @property
    def prefix(self) -> int:
        """Number of tokens that are not patches."""
        return int(self.class_token) + int(self.distilled) + self.registers

    @property
    def hidden(self) -> int:
        """Width of the MLP's hidden layer."""
        return int(self.width * self.mlp_ratio)

    def patches(self, image_size: int) -> int:
        """Patch tokens of a square input with this side, in pixels."""
        return (image_size // self.patch_size) ** 2


def gmacs(
    config: ViTConfig,
    image_size: int,
    after: Sequence[float],
    point: ReductionPoint = ReductionPoint.MIDDLE,
    heads: int = 0,
) -> float:
    """Billions of multiply-adds of one forward, which this field prints as GFLOPs.

    `after` gives the tokens that leave the reducer of each block that runs, prefix included. Counted
    are the linear maps and the two attention products, as in DeiT's 4.6 GFLOPs for ViT-S; norms,
    softmax, activations and a reducer's own work are not.
    """
    tokens = config.patches(image_size) + config.prefix
    total = embedding_macs(config, image_size) + block_macs(config, tokens, after, point, heads)
    return (total + classifier_macs(config)) / 1e9


def embedding_macs(config: ViTConfig, image_size: int) -> float:
    """Multiply-adds of cutting a picture into tokens."""
    return config.patches(image_size) * 3 * config.patch_size**2 * config.width


def classifier_macs(config: ViTConfig) -> float:
    """Multiply-adds of the final classifier."""
    return config.width * config.classes * (2 if config.distilled else 1)


def block_macs(
    config: ViTConfig,
    tokens: float,
    after: Sequence[float],
    point: ReductionPoint = ReductionPoint.MIDDLE,
    heads: int = 0,
) -> float:
    """Multiply-adds of blocks that `tokens` tokens enter and that leave `after` each of them.

    `place` says which part of a block the reduced tokens are for: in the middle, its attention still
    sees those of the block before. `heads` counts those that are used of each block's; 0: all.
    """
    width, hidden = config.width, config.hidden
    used = (heads or config.heads) / config.heads
    total: float = 0
    for remaining in after:
        attended = remaining if point is ReductionPoint.BEFORE else tokens
        valued = tokens if point is ReductionPoint.MIDDLE else remaining
        total += used * 2 * (attended * width**2 + attended**2 * width)
        total += used * 2 * valued * width**2
        total += 2 * remaining * width * hidden
        tokens = remaining
    return total
