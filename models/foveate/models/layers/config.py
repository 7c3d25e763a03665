"""The configuration of a vision transformer, and the multiply-adds of its parts."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from foveate.core.checkpoint_options import Activation, Pool, Rope


class ReductionPoint(Enum):
    """The point in a block at which a token reducer acts."""

    MIDDLE = "middle"
    """Between attention and MLP. The reducer sees this block's attention (EViT, ToMe)."""
    BEFORE = "before"
    """Before the block. The reducer sees features only (IA-RED)."""
    AHEAD = "ahead"
    """Before the block. The reducer sees the block's attention, which is fused together with the tokens and
    then used for the fused tokens (MCTF's one-step-ahead attention)."""


@dataclass(frozen=True, slots=True)
class ViTConfig:
    """All settings that fix a plain ViT. Field names follow timm's arguments."""

    image_size: int = 224
    """Side of the square input, in pixels."""
    patch_size: int = 16
    """Side of a patch, in pixels."""
    width: int = 192
    """Features of a token."""
    depth: int = 12
    """Number of blocks."""
    heads: int = 3
    """Attention heads of each block."""
    mlp_ratio: float = 4.0
    """Width of the MLP's hidden layer, as a multiple of `width`."""
    classes: int = 1000
    """Number of classes. With 0 the model has no classifier and returns an embedding of the image."""
    projection: int = 0
    """Width of the embedding that a linear map makes of the pooled features (CLIP). 0: there is no such map,
    and the embedding is the pooled features."""
    projection_bias: bool = False
    """The map of `projection` has a bias (EVA-CLIP)."""
    class_token: bool = True
    distilled: bool = False
    """A second prefix token with its own head. Its logits are averaged with the first's (DeiT, section 4)."""
    registers: int = 0
    """Number of register tokens."""
    embed_prefix: bool = True
    """Position embeddings cover the prefix tokens too (timm: not no_embed_class)."""
    pre_norm: bool = False
    """A norm before the first block, as in CLIP."""
    layer_scale: bool = False
    """A learned gain for each channel of every residual branch (CaiT)."""
    qkv_bias: bool = True
    qk_norm: bool = False
    """Norms on queries and keys."""
    attn_norm: bool = False
    """A norm between the heads' outputs and their projection (EVA-02, section 2.1: sub-LN)."""
    gated_mlp: bool = False
    """The MLP multiplies its hidden layer by a second one, the activated gate (SwiGLU)."""
    mlp_norm: bool = False
    """A norm on the MLP's hidden layer (EVA-02, section 2.1: sub-LN)."""
    patch_bias: bool = True
    final_norm: bool = True
    """A norm after the last block."""
    pool: Pool = "token"
    """Input of the classifier: the first prefix token, the mean over patches, attention pooling, or the first
    two, one after the other, as in DINOv2's linear classifiers."""
    fc_norm: bool = False
    """A norm between pooling and the classifier."""
    eps: float = 1e-6
    """Epsilon of every norm."""
    activation: Activation = "gelu"
    pos_embed: bool = True
    """Learned position embeddings are added to the tokens."""
    rope: Rope = "none"
    """Rotary positions of queries and keys, by the kind of their coordinates."""
    rope_temperature: float = 10000.0
    """Base of the wavelengths."""
    rope_reference: int = 0
    """Side of the grid, in patches, to which other grids' coordinates are scaled; 0: they are not scaled."""
    rope_offset: float = 0.0
    """Added to the coordinates before they are scaled."""
    rope_xy: bool = False
    """The column comes before the row."""
    rope_half: bool = False
    """Features are rotated in pairs of a first and a second half, not in pairs of neighbours."""
    pool_heads: int = 0
    """Heads of attention pooling; 0: as many as a block has."""
    pool_ratio: float = 0.0
    """Width of the hidden layer of attention pooling, as a multiple of `width`; 0: `mlp_ratio`."""
    pool_prefix: bool = False
    """Attention pooling reads the prefix tokens too."""

    @property
    def prefix(self) -> int:
        """Number of tokens that are not patches."""
        return int(self.class_token) + int(self.distilled) + self.registers

    @property
    def ignores_class_token(self) -> bool:
        """The classifier reads the mean over patches beside a class token, as in MAE's fine-tuned models."""
        return self.class_token and self.pool == "avg"

    @property
    def pooled(self) -> int:
        """Width of the pooled features."""
        return 2 * self.width if self.pool == "token_avg" else self.width

    @property
    def hidden(self) -> int:
        """Width of the MLP's hidden layer."""
        return int(self.width * self.mlp_ratio)

    @property
    def pool_hidden(self) -> int:
        """Width of the hidden layer of attention pooling."""
        return int(self.width * (self.pool_ratio or self.mlp_ratio))

    def patches(self, image_size: int) -> int:
        """Number of patch tokens of a square input with this side, in pixels."""
        return (image_size // self.patch_size) ** 2


def gmacs(
    config: ViTConfig,
    image_size: int,
    after: Sequence[float],
    point: ReductionPoint = ReductionPoint.MIDDLE,
) -> float:
    """Billions of multiply-adds of one forward pass. Papers on vision transformers call them GFLOPs.

    `after` holds, for each block that runs, the tokens that leave the reducer, prefix included. The count
    covers the linear maps and the two attention products, as in DeiT's 4.6 GFLOPs for ViT-S. It leaves out
    norms, softmax, activations and a reducer's own work.
    """
    tokens = config.patches(image_size) + config.prefix
    total = embedding_macs(config, image_size) + block_macs(config, tokens, after, point)
    return (total + classifier_macs(config, after[-1] if after else tokens)) / 1e9


def embedding_macs(config: ViTConfig, image_size: int) -> float:
    """Multiply-adds of embedding an image's patches."""
    return config.patches(image_size) * 3 * config.patch_size**2 * config.width


def classifier_macs(config: ViTConfig, tokens: float) -> float:
    """Multiply-adds of pooling `tokens` tokens, prefix included, and of the last linear map."""
    outputs = config.classes * (2 if config.distilled else 1) or config.projection
    linear = config.pooled * outputs
    if config.pool != "map":
        return linear
    read, width = tokens if config.pool_prefix else tokens - config.prefix, config.width
    # Keys and values, two attention products with one query, the query, the projection and the MLP.
    return linear + 2 * read * width * (width + 1) + 2 * width * (width + config.pool_hidden)


def block_macs(
    config: ViTConfig,
    tokens: float,
    after: Sequence[float],
    point: ReductionPoint = ReductionPoint.MIDDLE,
) -> float:
    """Multiply-adds of consecutive blocks. `tokens` enter the first one; `after` leave each of them.

    `point` decides which part of a block works on the reduced tokens. At MIDDLE a block's attention still
    works on the tokens of the block before.
    """
    width, hidden = config.width, config.hidden
    total: float = 0
    for remaining in after:
        attending = remaining if point is ReductionPoint.BEFORE else tokens
        valued = tokens if point is ReductionPoint.MIDDLE else remaining
        total += 2 * (attending * width**2 + attending**2 * width)
        total += 2 * valued * width**2
        total += (3 if config.gated_mlp else 2) * remaining * width * hidden
        tokens = remaining
    return total
