"""Import timm, and read the configuration of a timm module. Modules that the trunk lacks are refused."""

import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import nn

from foveate.core.checkpoint_options import Activation, Rope
from foveate.core.errors import SetupError
from foveate.core.nearest_names import nearest
from foveate.models.layers.config import ViTConfig
from foveate.models.weights.config_from_weights import pool_ratio, ratio
from foveate.models.weights.not_elastic import NotElastic
from foveate.models.weights.torchvision_operators import declare_missing_operators

_MODELS = frozenset({"VisionTransformer", "VisionTransformerDistilled", "Eva"})
_LAYERS = frozenset({
    "Attention", "AttentionPoolLatent", "AttentionRope", "Block", "Conv2d", "DropPath", "Dropout",
    "EvaAttention", "EvaBlock", "GluMlp", "Identity", "LayerNorm", "LayerScale", "Linear", "Mlp",
    "ModuleList", "PatchEmbed", "RotaryEmbeddingCat", "RotaryEmbeddingDinoV3", "Sequential", "SwiGLU",
})  # fmt: skip
_ACTIVATIONS: Mapping[str, Activation] = {
    "GELU": "gelu",
    "GELUTanh": "gelu_tanh",
    "QuickGELU": "quick_gelu",
    "SiLU": "silu",
}
_IMAGE_TOWERS = re.compile(r"clip|_pe_core_")
"""In timm's names and tags, those of networks that were trained to embed images. timm describes their
projection as a classifier."""
_ROPES: Mapping[str, Rope] = {"RotaryEmbeddingCat": "cat", "RotaryEmbeddingDinoV3": "dinov3"}


def import_timm(spec: str, zoo_names: Sequence[str] = ()) -> Any:
    """The timm package. Raises SetupError where it is not installed or does not import."""
    declare_missing_operators()
    close = ", ".join(nearest(spec, zoo_names))
    suggestion = f" (did you mean {close}?)" if close else ""
    try:
        return import_module("timm")
    except ModuleNotFoundError as error:
        if error.name != "timm":
            raise SetupError(f"timm does not import, because {error.name} is not installed") from error
        command = "pip install 'foveate[timm]'"
        raise SetupError(f"{spec} comes from timm, which is not installed{suggestion}: {command}") from None
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        # torchvision's operators load only with the version of torch that they were built for.
        hint = f"install the torchvision that was built for torch {torch.__version__}"
        why = f"timm, which {spec} comes from, does not import{suggestion}"
        raise SetupError(f"{why}; {hint}: {sentence(error)}") from error


def vit_config(module: Any, name: str) -> ViTConfig:
    """The configuration of a timm module. Raises NotElastic for anything that the trunk does not have."""
    _check_layers(module, name)
    patch, block, pool = module.patch_embed, module.blocks[0], module.attn_pool
    # Eva's attention pooling always reads all tokens.
    is_eva = type(module).__name__ == "Eva"
    pool_prefix = pool is not None if is_eva else getattr(module, "pool_include_prefix", False)
    if module.global_pool not in ("token", "avg", "map") or (pool_prefix and pool is None):
        raise NotElastic(
            f"{name} pools its tokens by {module.global_pool!r} in a way the trunk does not have"
        )
    if patch.proj.in_channels != 3 or len(set(patch.img_size)) > 1 or len(set(patch.patch_size)) > 1:
        raise NotElastic(f"{name} does not take square RGB images in square patches")
    attn, mlp = block.attn, block.mlp
    activation, hidden = _activation(mlp.act), mlp.fc2.in_features
    projection = projection_of(module)
    if getattr(mlp, "gate_last", False) or (pool is not None and not _pool_fits(pool, activation)):
        raise NotElastic(f"{name} has a gated MLP or an attention pooling of a kind that the trunk lacks")
    config = ViTConfig(
        image_size=patch.img_size[0],
        patch_size=patch.patch_size[0],
        width=module.embed_dim,
        depth=len(module.blocks),
        heads=attn.num_heads,
        mlp_ratio=ratio(hidden, module.embed_dim),
        classes=module.num_classes - projection,
        projection=projection,
        projection_bias=bool(projection) and module.head.bias is not None,
        class_token=module.cls_token is not None,
        distilled=hasattr(module, "dist_token"),
        registers=0 if module.reg_token is None else module.reg_token.shape[1],
        embed_prefix=module.pos_embed is None or not module.no_embed_class,
        pre_norm=_present(module.norm_pre),
        layer_scale=block.gamma_1 is not None if is_eva else _present(block.ls1),
        qkv_bias=_has_bias(attn),
        qk_norm=_present(attn.q_norm),
        attn_norm=_present(getattr(attn, "norm", None)),
        gated_mlp=type(mlp).__name__ in ("GluMlp", "SwiGLU"),
        mlp_norm=_present(getattr(mlp, "norm", None)),
        patch_bias=patch.proj.bias is not None,
        final_norm=_present(module.norm),
        pool=module.global_pool,
        fc_norm=_present(module.fc_norm),
        eps=_eps(module, name),
        activation=activation,
        pos_embed=module.pos_embed is not None,
        pool_heads=0 if pool is None or pool.num_heads == attn.num_heads else pool.num_heads,
        pool_ratio=0.0 if pool is None else pool_ratio(pool.mlp.fc1.out_features, hidden, module.embed_dim),
        pool_prefix=pool_prefix,
        **_rope(getattr(module, "rope", None), name),
    )
    _check_tokens(config, module, name)
    return config


def _check_layers(module: nn.Module, name: str) -> None:
    """Raise NotElastic for another kind of model, and for layers that the trunk does not have."""
    if type(module).__name__ not in _MODELS:
        raise NotElastic(
            f"{name} is a {type(module).__name__}, and the elastic trunk runs only vision transformers"
        )
    unknown = sorted({type(m).__name__ for m in module.modules()} - _MODELS - _LAYERS - _ACTIVATIONS.keys())
    if unknown:
        raise NotElastic(f"{name} uses {', '.join(unknown)}, which the trunk does not have")


def _check_tokens(config: ViTConfig, module: Any, name: str) -> None:
    """Raise NotElastic where patches do not tile the image, and for prefix tokens of unknown kinds."""
    if config.image_size % config.patch_size:
        raise NotElastic(f"{name}: patches of {config.patch_size} pixels do not tile {config.image_size}")
    if config.prefix != module.num_prefix_tokens:
        raise NotElastic(
            f"{name} has {module.num_prefix_tokens} prefix tokens, and only {config.prefix} of them are known"
        )


def projection_of(module: Any) -> int:
    """Width of the embedding that the last linear map of a timm module makes; 0 where it scores classes.

    Outputs without names are an embedding if timm publishes an image tower of the architecture with as many.
    """
    config, outputs = module.pretrained_cfg, int(module.num_classes)
    named = config.get("label_names") or config.get("label_descriptions")
    return 0 if named or outputs not in embedding_widths(config.get("architecture") or "") else outputs


def embedding_widths(architecture: str) -> frozenset[int]:
    """The widths of the projections with which timm publishes image towers of an architecture."""
    published = import_module("timm.models").get_arch_pretrained_cfgs(architecture)
    subset = import_module("timm.data").infer_imagenet_subset
    outputs = {each.num_classes for name, each in published.items() if _IMAGE_TOWERS.search(name)}
    return frozenset(width for width in outputs if width and subset({"num_classes": width}) is None)


def _present(module: nn.Module | None) -> bool:
    """Whether an optional layer is there: timm puts an Identity where it is not."""
    return module is not None and not isinstance(module, nn.Identity)


def _has_bias(attn: Any) -> bool:
    """Whether queries have a bias. Keys may have none: one of zero is the same."""
    if getattr(attn, "q_bias", None) is not None:
        return True
    return (attn.q_proj if attn.qkv is None else attn.qkv).bias is not None


def _pool_fits(pool: Any, activation: Activation) -> bool:
    """Whether an attention pooling is the trunk's: one query, and the activation of the blocks."""
    return pool.pool == "token" and pool.latent_len == 1 and _activation(pool.mlp.act) == activation


def _rope(rope: Any, name: str) -> dict[str, Any]:
    """The settings of rotary positions, by the names of `ViTConfig`; empty without them."""
    if rope is None:
        return {}
    kind = _ROPES[type(rope).__name__]
    reference = set(getattr(rope, "ref_feat_shape", None) or (0,))
    in_pixels = kind == "cat" and (rope.in_pixels or getattr(rope, "grid_type", "index") != "index")
    periods = getattr(rope, "min_period", None), getattr(rope, "max_period", None)
    if in_pixels or len(reference) > 1 or periods != (None, None):
        raise NotElastic(f"{name} has rotary positions of a kind that the trunk does not have")
    return {
        "rope": kind,
        "rope_temperature": float(rope.temperature),
        "rope_reference": reference.pop(),
        "rope_offset": float(rope.grid_offset),
        "rope_xy": rope.grid_indexing == "xy",
        "rope_half": bool(getattr(rope, "rotate_half", kind == "dinov3")),
    }


def _eps(module: nn.Module, name: str) -> float:
    values = {m.eps for m in module.modules() if isinstance(m, nn.LayerNorm)}
    if len(values) != 1:
        raise NotElastic(f"{name} mixes norms with different epsilons, which the trunk does not")
    return values.pop()


def _activation(act: nn.Module) -> Activation:
    if isinstance(act, nn.GELU) and act.approximate == "tanh":
        return "gelu_tanh"
    return _ACTIVATIONS[type(act).__name__]


def sentence(error: BaseException) -> str:
    """The first sentence of an error's text, at most 160 characters, for use inside another message."""
    text = " ".join(str(error).split()) or type(error).__name__
    first = text.partition(". ")[0].rstrip(".: ")
    return first if len(first) <= 160 else first[:157] + "..."
