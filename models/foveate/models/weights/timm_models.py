"""timm's vision transformers: what the trunk represents exactly is converted, the rest is refused."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import Any, get_args

import torch
from safetensors import SafetensorError
from torch import nn

from foveate.core.errors import SetupError
from foveate.core.model import CropMode, InputSpec, Interpolation
from foveate.models import reduction
from foveate.models.layers.config import Activation, ViTConfig
from foveate.models.vit.vit import ElasticViT, ResolvedPlan
from foveate.models.weights.checkpoint import Checkpoint, attach, variant
from foveate.models.weights.config_from_weights import ratio
from foveate.models.zoo import Card

_MODELS = frozenset({"VisionTransformer", "VisionTransformerDistilled"})
_LAYERS = frozenset({
    "Attention", "Block", "Conv2d", "DropPath", "Dropout", "Identity", "LayerNorm", "LayerScale", "Linear",
    "Mlp", "PatchEmbed", "Sequential",
})  # fmt: skip
_ACTIVATIONS: Mapping[str, Activation] = {"GELU": "gelu", "GELUTanh": "gelu_tanh", "QuickGELU": "quick_gelu"}
_SAFE = {"hf_hub_filename": "model.safetensors"}
"""Without it timm falls back to a pickle where a repository has nothing else."""
_TOLERANCE = 1e-3


def load(spec: str, zoo_names: Sequence[str] = ()) -> Checkpoint:
    """A pretrained timm model. `zoo_names` are only suggested when timm does not know the name.

    Raises SetupError when timm is missing, has no such model or weights, cannot fetch them, or the
    trunk does not represent the model exactly.
    """
    timm, name = _timm(spec, zoo_names), spec.removeprefix("timm/")
    _check_known(timm, name, zoo_names)
    # Its structure costs nothing on the meta device; a model that will be refused is never downloaded.
    skeleton: Any = _create(timm, name, pretrained=False)
    _trunk(skeleton, name)
    if not skeleton.pretrained_cfg.get("hf_hub_id"):
        raise SetupError(f"timm has no safetensors weights for {name}; random:{name} makes some up")
    return convert(_create(timm, name, pretrained=True), name)


def card(name: str) -> Card:
    """The card of a timm model, without any weights. Raises SetupError as `load` does."""
    timm = _timm(name)
    _check_known(timm, name, ())
    module = _create(timm, name, pretrained=False)
    return _card(module, vit_config(module, name), name)


def convert(module: nn.Module, name: str) -> Checkpoint:
    """The trunk with a timm module's weights, whose storage they share.

    Raises SetupError when the module is something else, or when the two disagree on a random image.
    """
    checkpoint = _trunk(module, name)
    difference = _disagreement(checkpoint.model, module)
    # Written so that a difference that is not a number is refused too.
    if not difference <= _TOLERANCE:
        raise SetupError(f"{name} is not served: the trunk's output differs from timm's by {difference:.2g}")
    return checkpoint


def _trunk(module: nn.Module, name: str) -> Checkpoint:
    return attach(_card(module, vit_config(module, name), name), module.state_dict(), name)


def vit_config(module: Any, name: str) -> ViTConfig:
    """Read off a timm module what fixes its computation. Raises SetupError for what the trunk lacks."""
    if type(module).__name__ not in _MODELS:
        raise SetupError(
            f"{name} is a {type(module).__name__}, and only plain vision transformers are served"
        )
    unknown = sorted({type(m).__name__ for m in module.modules()} - _MODELS - _LAYERS - _ACTIVATIONS.keys())
    if unknown:
        raise SetupError(f"{name} uses {', '.join(unknown)}, which the trunk does not have")
    if module.pos_embed is None:
        raise SetupError(f"{name} has no learned position embedding, which the trunk needs")
    if module.global_pool not in ("token", "avg") or getattr(module, "pool_include_prefix", False):
        raise SetupError(
            f"{name} pools its tokens by {module.global_pool!r} in a way the trunk does not have"
        )
    patch, block = module.patch_embed, module.blocks[0]
    if patch.proj.in_channels != 3 or len(set(patch.img_size)) > 1 or len(set(patch.patch_size)) > 1:
        raise SetupError(f"{name} does not take square RGB images in square patches")
    found = ViTConfig(
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
    if found.prefix != module.num_prefix_tokens:
        raise SetupError(f"{name} has {module.num_prefix_tokens} prefix tokens, of which some are unknown")
    return found


def _present(module: nn.Module) -> bool:
    return not isinstance(module, nn.Identity)


def _eps(module: nn.Module, name: str) -> float:
    found = {m.eps for m in module.modules() if isinstance(m, nn.LayerNorm)}
    if len(found) != 1:
        raise SetupError(f"{name} mixes norms with different epsilons, which the trunk does not")
    return found.pop()


def _activation(act: nn.Module) -> Activation:
    if isinstance(act, nn.GELU) and act.approximate == "tanh":
        return "gelu_tanh"
    return _ACTIVATIONS[type(act).__name__]


@torch.inference_mode()
def _disagreement(model: ElasticViT, module: nn.Module) -> float:
    """Largest difference on one random image, relative to the largest output where that is above one."""
    side, depth = model.config.image_size, model.config.depth
    image = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    ours = model(image, ResolvedPlan(reduction.create("none", model), depth)).logits
    theirs = module.eval()(image)
    if ours.shape != theirs.shape:
        return float("inf")
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1))


def _card(module: Any, shape: ViTConfig, name: str) -> Card:
    config = module.pretrained_cfg
    data = import_module("timm.data").resolve_model_data_config(module)
    if data["crop_mode"] not in get_args(CropMode) or data["interpolation"] not in get_args(Interpolation):
        how = f"{data['crop_mode']} crops and {data['interpolation']} interpolation"
        raise SetupError(f"{name} is prepared with {how}, which the decoder does not do")
    origin = config.get("hf_hub_id")
    return Card(
        name=variant(name.partition("@")[0].rpartition("/")[2]),
        config=shape,
        labels=_labels(config, shape.classes),
        input=InputSpec(data["crop_pct"], data["crop_mode"], data["interpolation"]),
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        description=f"{config.get('architecture') or name} of timm",
        licence=config.get("license") or "",
        source=f"hf-hub:{origin}" if origin else config.get("url") or "",
    )


def _labels(config: Mapping[str, Any], classes: int) -> tuple[str, ...]:
    """Class names from the checkpoint's own configuration, else ImageNet's by their number."""
    data = import_module("timm.data")
    labels = list(config.get("label_names") or ())
    described = config.get("label_descriptions") or {}
    if isinstance(described, Mapping):
        labels = [described.get(label, label) for label in labels]
    else:
        labels = list(described)
    subset = data.infer_imagenet_subset({"num_classes": classes})
    if not labels and subset is not None:
        labels = data.ImageNetInfo(subset).label_descriptions()
    return tuple(labels) if len(labels) == classes else ()


def _timm(spec: str, zoo_names: Sequence[str] = ()) -> Any:
    meant = f" (did you mean {', '.join(m)}?)" if (m := get_close_matches(spec, zoo_names)) else ""
    try:
        return import_module("timm")
    except ModuleNotFoundError as error:
        if error.name != "timm":
            raise SetupError(f"timm does not import, because {error.name} is not installed") from error
        command = "pip install 'foveate[timm]'"
        raise SetupError(f"{spec} comes from timm, which is not installed{meant}: {command}") from None
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        # torchvision's operators refuse to load beside another torch than the one they were built for.
        hint = f"install the torchvision that was built for torch {torch.__version__}"
        why = f"timm, which {spec} comes from, does not import{meant}"
        raise SetupError(f"{why}; {hint}: {sentence(error)}") from error


def _check_known(timm: Any, name: str, zoo_names: Sequence[str]) -> None:
    """Raises SetupError for a name or tag that timm does not list; the Hub answers for its own names."""
    if name.startswith(("hf-hub:", "hf_hub:")):
        return
    if not timm.is_model(name):
        known = [*zoo_names, *timm.list_models(), *timm.list_pretrained()]
        if "/" in name:
            known.append(f"hf-hub:{name}")
        meant = get_close_matches(name, known) or get_close_matches(name.partition(".")[0], known)
        hint = f"; did you mean {', '.join(meant)}?" if meant else ""
        raise SetupError(f"{name!r} is neither in the zoo nor a name timm knows{hint}")
    architecture, _, tag = name.partition(".")
    tagged = timm.list_pretrained(f"{architecture}.*")
    if tag and name not in tagged:
        there = ", ".join(tagged) or "no weights at all"
        raise SetupError(f"{architecture} has no weights tagged {tag!r} in timm; there is {there}")


def _create(timm: Any, name: str, pretrained: bool) -> nn.Module:
    # httpx's or requests', as the installed version has it.
    http_error = import_module("huggingface_hub.errors").HTTPError
    try:
        with torch.device("cpu" if pretrained else "meta"):
            module: nn.Module = timm.create_model(
                name, pretrained=pretrained, pretrained_cfg_overlay=_SAFE if pretrained else None
            )
    except (OSError, http_error) as error:
        instead = "the path of a local .safetensors file can be given instead"
        raise SetupError(
            f"the weights of {name} could not be fetched ({sentence(error)}); {instead}"
        ) from error
    except (RuntimeError, ValueError, TypeError, KeyError, AssertionError, SafetensorError) as error:
        raise SetupError(f"timm cannot load {name}: {sentence(error)}") from error
    return module.eval()


def sentence(error: BaseException) -> str:
    """The first sentence of an error's text, short enough to stand inside another."""
    text = " ".join(str(error).split()) or type(error).__name__
    first = text.partition(". ")[0].rstrip(".: ")
    return first if len(first) <= 160 else first[:157] + "..."
