"""A model configuration inferred from a state dict with timm's parameter names."""

import math
from collections.abc import Mapping

from torch import Tensor

from foveate.core.checkpoint_options import NOTHING_STATED, CheckpointOptions, Pool
from foveate.core.errors import SetupError
from foveate.models.layers.config import ViTConfig
from foveate.models.weights.not_elastic import STATE_ARCHITECTURE
from foveate.models.weights.timm_architectures import usual_heads

HEAD_WIDTH = 64
"""Width of an attention head in most vision transformers."""


def config_from_weights(
    state: Mapping[str, Tensor], where: str, stated: CheckpointOptions = NOTHING_STATED
) -> ViTConfig:
    """Infer the configuration from the names and shapes of the parameters. where: for error messages.

    Some values cannot be inferred. They are those `stated`, and else guessed, as `guessed_shape` lists them:
    the heads are those of timm's model of this width and depth, or 64 wide; the activation is GELU; norms use
    1e-6, or 1e-5 in the pre-norm models of CLIP; a model with a class token and no norm after pooling
    classifies that token. Raises SetupError when the names are not timm's or the shapes are not those of a
    plain ViT.
    """
    for name in ("patch_embed.proj.weight", "pos_embed", "blocks.0.mlp.fc1.weight"):
        if name not in state:
            raise SetupError(
                f"{where} is not a ViT under timm's names: it has no {name}; {STATE_ARCHITECTURE}"
            )
    width, _, patch, _ = _shape(state, "patch_embed.proj.weight", 4, where)
    hidden, _ = _shape(state, "blocks.0.mlp.fc1.weight", 2, where)
    _, positions, _ = _shape(state, "pos_embed", 3, where)
    registers = state["reg_token"].shape[1] if "reg_token" in state else 0
    class_token, distilled = "cls_token" in state, "dist_token" in state
    side, embed_prefix = _grid(positions, registers + class_token + distilled, where)
    fc_norm, pre_norm = "fc_norm.weight" in state, "norm_pre.weight" in state
    depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    pool: Pool = "avg" if fc_norm or not class_token else "token"
    return ViTConfig(
        image_size=side * patch,
        patch_size=patch,
        width=width,
        depth=depth,
        heads=stated.heads or _heads(state, width, depth, where),
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
        pool=stated.pool or pool,
        fc_norm=fc_norm,
        eps=stated.eps or (1e-5 if pre_norm else 1e-6),
        activation=stated.activation or "gelu",
    )


def guessed_shape(config: ViTConfig, stated: CheckpointOptions) -> dict[str, object]:
    """The values of an inferred configuration that are guesses: neither stated nor shown by the weights."""
    uncertain: dict[str, object] = {"activation": config.activation, "eps": config.eps}
    if not config.qk_norm:
        uncertain = {"heads": config.heads} | uncertain
    if config.class_token and not config.fc_norm:
        uncertain["pool"] = config.pool
    return {name: value for name, value in uncertain.items() if name not in stated.stated()}


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


def _heads(state: Mapping[str, Tensor], width: int, depth: int, where: str) -> int:
    """The number of attention heads: the query norm shows it, else it is a guess."""
    norm = state.get("blocks.0.attn.q_norm.weight")
    usual = usual_heads(width, depth) if norm is None else None
    if usual is not None:
        return usual
    head_width = HEAD_WIDTH if norm is None else norm.shape[0]
    if width % head_width:
        raise SetupError(
            f"{where} has a width of {width}, which is no multiple of the head width {head_width}, "
            "so its number of heads is unknown: state it with --heads"
        )
    return width // head_width
