"""A model configuration inferred from a state dict with timm's parameter names."""

import math
from collections.abc import Mapping

from torch import Tensor

from foveate.core.checkpoint_options import NOTHING_STATED, CheckpointOptions, Pool
from foveate.core.errors import SetupError
from foveate.models.layers.config import ViTConfig
from foveate.models.weights.eva_names import is_eva, trunk_names
from foveate.models.weights.not_elastic import STATE_ARCHITECTURE
from foveate.models.weights.timm_architectures import TimmArchitecture, stated_architecture, usual_heads

HEAD_WIDTH = 64
"""Width of an attention head in most vision transformers."""


def config_from_weights(
    state: Mapping[str, Tensor], where: str, stated: CheckpointOptions = NOTHING_STATED
) -> ViTConfig:
    """Infer the configuration from the names and shapes of the parameters. where: for error messages.

    Some values cannot be inferred. They are those `stated`, then those of the stated architecture, and else
    guessed, as `guessed_shape` lists them: the heads are those of timm's model of this width and depth, or 64
    wide; the activation is GELU, or SiLU of a gated MLP; norms use 1e-6, or 1e-5 in the pre-norm models of
    CLIP; a model with a class token and no norm after pooling classifies that token. Outputs without labels
    are an embedding where those of the stated architecture's image tower are as many. Raises SetupError when
    the names are not timm's or the shapes are not those of a ViT, and for a model that may have rotary
    positions, which nothing states.
    """
    known = stated_architecture(stated.architecture)
    eva = is_eva(state)
    if eva:  # shapes are enough, and joining them copies nothing
        state = trunk_names({name: value.to("meta") for name, value in state.items()})
    _check_names(state, where, known, eva, stated.pool)
    width, _, patch, _ = _shape(state, "patch_embed.proj.weight", 4, where)
    _, hidden = _shape(state, "blocks.0.mlp.fc2.weight", 2, where)
    if known is not None and not stated.heads and known.width != width:
        raise SetupError(
            f"{stated.architecture} has a width of {known.width}, and {where} shows {width}: state the "
            "architecture of these weights, or --heads too"
        )
    registers = state["reg_token"].shape[1] if "reg_token" in state else 0
    class_token, distilled = "cls_token" in state, "dist_token" in state
    fc_norm, pre_norm = "fc_norm.weight" in state, "norm_pre.weight" in state
    gated = state["blocks.0.mlp.fc1.weight"].shape[0] == 2 * hidden
    image_size, embed_prefix = _size(state, registers + class_token + distilled, patch, where, known)
    depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    pool: Pool = "avg" if fc_norm or not class_token else "token"
    pool_hidden = state["attn_pool.mlp.fc1.weight"].shape[0] if "attn_pool.latent" in state else hidden
    outputs = state["head.weight"].shape[0] if "head.weight" in state else 0
    embeds = known is not None and outputs == known.projection and not stated.labels
    projection = outputs if embeds else 0
    unseen = {name: value for name, value in (known.config if known else {}).items() if name != "image_size"}
    return ViTConfig(
        image_size=image_size,
        patch_size=patch,
        width=width,
        depth=depth,
        heads=stated.heads or (known.heads if known else _heads(state, width, depth, where)),
        mlp_ratio=ratio(hidden, width),
        classes=outputs - projection,
        projection=projection,
        projection_bias=bool(projection) and "head.bias" in state,
        class_token=class_token,
        distilled=distilled,
        registers=registers,
        embed_prefix=embed_prefix,
        pre_norm=pre_norm,
        layer_scale="blocks.0.ls1.gamma" in state,
        qkv_bias="blocks.0.attn.qkv.bias" in state,
        qk_norm="blocks.0.attn.q_norm.weight" in state,
        attn_norm="blocks.0.attn.norm.weight" in state,
        gated_mlp=gated,
        mlp_norm="blocks.0.mlp.norm.weight" in state,
        patch_bias="patch_embed.proj.bias" in state,
        final_norm="norm.weight" in state,
        pool="map" if "attn_pool.latent" in state else stated.pool or (known.pool if known else pool),
        fc_norm=fc_norm,
        eps=stated.eps or (known.eps if known else 1e-5 if pre_norm else 1e-6),
        activation=stated.activation or (known.activation if known else "silu" if gated else "gelu"),
        pos_embed="pos_embed" in state,
        pool_ratio=pool_ratio(pool_hidden, hidden, width),
        **unseen,
    )


def _check_names(
    state: Mapping[str, Tensor],
    where: str,
    known: TimmArchitecture | None,
    eva: bool,
    stated_pool: Pool | None,
) -> None:
    """Raise SetupError for parameters of another network, and for one that may have unknown positions.

    Rotary positions have no parameters. timm's Eva class often has them (`eva`), as have its Perception
    Encoders, which pool a class token by attention, or have a norm before the blocks and none after them.
    """
    for name in ("patch_embed.proj.weight", "blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc2.weight"):
        if name not in state:
            raise SetupError(
                f"{where} is not a ViT under timm's names: it has no {name}; {STATE_ARCHITECTURE}"
            )
    if stated_pool == "map" and "attn_pool.latent" not in state:
        raise SetupError(f"{where} has no attention pooling, so its pool cannot be 'map'")
    pools_class_token = "attn_pool.latent" in state and "cls_token" in state
    without_norm = "norm_pre.weight" in state and not {"norm.weight", "fc_norm.weight"} & state.keys()
    if known is None and (eva or "pos_embed" not in state or pools_class_token or without_norm):
        raise SetupError(
            f"{where} may have rotary positions, which weights do not show: state timm's architecture with "
            "--architecture, as in vit_small_patch16_dinov3, or put timm's config.json beside the file"
        )


def _size(
    state: Mapping[str, Tensor], prefix: int, patch: int, where: str, known: TimmArchitecture | None
) -> tuple[int, bool]:
    """Side of the input in pixels, and whether the prefix tokens have position embeddings too."""
    if "pos_embed" not in state:
        return int(known.config.get("image_size", 224) if known else 224), True
    _, positions, _ = _shape(state, "pos_embed", 3, where)
    side, embed_prefix = _grid(positions, prefix, where)
    return side * patch, embed_prefix


def guessed_shape(config: ViTConfig, stated: CheckpointOptions) -> dict[str, object]:
    """The values of an inferred configuration that are guesses: neither stated nor shown by the weights."""
    if stated.architecture is not None:
        return {}
    uncertain: dict[str, object] = {"activation": config.activation, "eps": config.eps}
    if not config.qk_norm:
        uncertain = {"heads": config.heads} | uncertain
    if config.class_token and not config.fc_norm and config.pool != "map":
        uncertain["pool"] = config.pool
    return {name: value for name, value in uncertain.items() if name not in stated.stated()}


def ratio(hidden: int, width: int) -> float:
    """The MLP ratio whose product with `width`, rounded down, is `hidden` again."""
    nearest = hidden / width
    return nearest if int(width * nearest) == hidden else math.nextafter(nearest, math.inf)


def pool_ratio(pool_hidden: int, hidden: int, width: int) -> float:
    """`ViTConfig.pool_ratio` of a hidden layer of attention pooling beside that of the blocks."""
    return 0.0 if pool_hidden == hidden else ratio(pool_hidden, width)


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
