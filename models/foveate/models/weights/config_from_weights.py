"""A model configuration inferred from a state dict with timm's parameter names."""

import math
from collections.abc import Mapping

from torch import Tensor

from foveate.core.errors import SetupError
from foveate.models.layers.config import ViTConfig

HEAD_WIDTH = 64
"""Width of an attention head where no query norm shows it."""


def config_from_weights(state: Mapping[str, Tensor], where: str) -> ViTConfig:
    """Infer the configuration from the names and shapes of the parameters. where: for error messages.

    Three values cannot be inferred and follow convention: attention heads are 64 wide (unless a query norm
    shows their width), the activation is GELU, and norms use 1e-6, or 1e-5 in the pre-norm models of CLIP.
    Raises SetupError when the names are not timm's or the shapes are not those of a plain ViT.
    """
    for name in ("patch_embed.proj.weight", "pos_embed", "blocks.0.mlp.fc1.weight"):
        if name not in state:
            raise SetupError(f"{where} is not a ViT under timm's names: it has no {name}")
    width, _, patch, _ = _shape(state, "patch_embed.proj.weight", 4, where)
    hidden, _ = _shape(state, "blocks.0.mlp.fc1.weight", 2, where)
    _, positions, _ = _shape(state, "pos_embed", 3, where)
    registers = state["reg_token"].shape[1] if "reg_token" in state else 0
    class_token, distilled = "cls_token" in state, "dist_token" in state
    side, embed_prefix = _grid(positions, registers + class_token + distilled, where)
    fc_norm, pre_norm = "fc_norm.weight" in state, "norm_pre.weight" in state
    return ViTConfig(
        image_size=side * patch,
        patch_size=patch,
        width=width,
        depth=len({name.split(".")[1] for name in state if name.startswith("blocks.")}),
        heads=_heads(state, width, where),
        mlp_ratio=ratio(hidden, width),
        classes=state["head.weight"].shape[0] if "head.weight" in state else 0,
        class_token=class_token,
        distilled=distilled,
        registers=registers,
        embed_prefix=embed_prefix,
        pre_norm=pre_norm,
        layer_scale="blocks.0.ls1.gamma" in state,
        qkv_bias="blocks.0.attn.qkv.bias" in state,
        qk_norm="blocks.0.attn.q_norm.weight" in state,
        patch_bias="patch_embed.proj.bias" in state,
        final_norm="norm.weight" in state,
        pool="avg" if fc_norm or not class_token else "token",
        fc_norm=fc_norm,
        eps=1e-5 if pre_norm else 1e-6,
    )


def ratio(hidden: int, width: int) -> float:
    """The MLP ratio whose product with `width`, rounded down, is `hidden` again."""
    nearest = hidden / width
    return nearest if int(width * nearest) == hidden else math.nextafter(nearest, math.inf)


def _shape(state: Mapping[str, Tensor], name: str, dims: int, where: str) -> tuple[int, ...]:
    """The shape of a parameter that must have so many dimensions, none of them empty."""
    shape = tuple(state[name].shape)
    if len(shape) != dims or 0 in shape:
        raise SetupError(f"{where} is not a plain ViT: {name} has shape {shape}")
    return shape


def _grid(positions: int, prefix: int, where: str) -> tuple[int, bool]:
    """Side of the square grid of patches, and whether the prefix tokens have position embeddings too."""
    for patches, embed_prefix in ((positions - prefix, True), (positions, False)):
        side = math.isqrt(max(patches, 0))
        if side and side**2 == patches:
            return side, embed_prefix
    raise SetupError(f"{where} has {positions} position embeddings, which form no square grid of patches")


def _heads(state: Mapping[str, Tensor], width: int, where: str) -> int:
    """The number of attention heads."""
    norm = state.get("blocks.0.attn.q_norm.weight")
    head_width = HEAD_WIDTH if norm is None else norm.shape[0]
    if width % head_width:
        raise SetupError(
            f"{where} has a width of {width}, which is no multiple of the head width {head_width}, "
            "so its number of heads is unknown"
        )
    return width // head_width
