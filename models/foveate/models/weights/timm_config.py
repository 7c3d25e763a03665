"""Import timm, and read the configuration of a timm module. Modules that the trunk lacks are refused."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import Any

import torch
from torch import nn

from foveate.core.checkpoint_options import Activation
from foveate.core.errors import SetupError
from foveate.models.layers.config import ViTConfig
from foveate.models.weights.config_from_weights import ratio
from foveate.models.weights.not_elastic import NotElastic
from foveate.models.weights.torchvision_operators import declare_missing_operators

_MODELS = frozenset({"VisionTransformer", "VisionTransformerDistilled"})
_LAYERS = frozenset({
    "Attention", "Block", "Conv2d", "DropPath", "Dropout", "Identity", "LayerNorm", "LayerScale", "Linear",
    "Mlp", "PatchEmbed", "Sequential",
})  # fmt: skip
_ACTIVATIONS: Mapping[str, Activation] = {"GELU": "gelu", "GELUTanh": "gelu_tanh", "QuickGELU": "quick_gelu"}


def import_timm(spec: str, zoo_names: Sequence[str] = ()) -> Any:
    """The timm package. Raises SetupError where it is not installed or does not import."""
    declare_missing_operators()
    suggestion = f" (did you mean {', '.join(m)}?)" if (m := get_close_matches(spec, zoo_names)) else ""
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
    if type(module).__name__ not in _MODELS:
        raise NotElastic(
            f"{name} is a {type(module).__name__}, and of timm only plain vision transformers are served"
        )
    unknown = sorted({type(m).__name__ for m in module.modules()} - _MODELS - _LAYERS - _ACTIVATIONS.keys())
    if unknown:
        raise NotElastic(f"{name} uses {', '.join(unknown)}, which the trunk does not have")
    if module.pos_embed is None:
        raise NotElastic(f"{name} has no learned position embedding, which the trunk needs")
    if module.global_pool not in ("token", "avg") or getattr(module, "pool_include_prefix", False):
        raise NotElastic(
            f"{name} pools its tokens by {module.global_pool!r} in a way the trunk does not have"
        )
    patch, block = module.patch_embed, module.blocks[0]
    if patch.proj.in_channels != 3 or len(set(patch.img_size)) > 1 or len(set(patch.patch_size)) > 1:
        raise NotElastic(f"{name} does not take square RGB images in square patches")
    config = ViTConfig(
        image_size=patch.img_size[0],
        patch_size=patch.patch_size[0],
        width=module.embed_dim,
        depth=len(module.blocks),
        heads=block.attn.num_heads,
        mlp_ratio=ratio(block.mlp.fc1.out_features, module.embed_dim),
        classes=module.num_classes,
        class_token=module.cls_token is not None,
        distilled=hasattr(module, "dist_token"),
        registers=0 if module.reg_token is None else module.reg_token.shape[1],
        embed_prefix=not module.no_embed_class,
        pre_norm=_present(module.norm_pre),
        layer_scale=_present(block.ls1),
        qkv_bias=block.attn.qkv.bias is not None,
        qk_norm=_present(block.attn.q_norm),
        patch_bias=patch.proj.bias is not None,
        final_norm=_present(module.norm),
        pool=module.global_pool,
        fc_norm=_present(module.fc_norm),
        eps=_eps(module, name),
        activation=_activation(block.mlp.act),
    )
    if config.prefix != module.num_prefix_tokens:
        raise NotElastic(
            f"{name} has {module.num_prefix_tokens} prefix tokens, and only {config.prefix} of them are known"
        )
    return config


def _present(module: nn.Module) -> bool:
    """Whether an optional layer is there: timm puts an Identity where it is not."""
    return not isinstance(module, nn.Identity)


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
