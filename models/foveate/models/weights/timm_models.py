"""timm's vision transformers, converted to the elastic trunk. Models that it cannot represent are refused."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from importlib import import_module
from typing import Any, get_args

import torch
from safetensors import SafetensorError
from torch import nn

from foveate.core.errors import SetupError
from foveate.core.model import CropMode, InputSpec, Interpolation
from foveate.core.nearest_names import did_you_mean
from foveate.models import reduction
from foveate.models.layers.config import ViTConfig
from foveate.models.vit.vit import ElasticViT, ResolvedPlan
from foveate.models.weights.checkpoint import Checkpoint, attach, variant
from foveate.models.weights.eva_names import trunk_names
from foveate.models.weights.hub_access import http_error, hub_access
from foveate.models.weights.json_file import check_label_names
from foveate.models.weights.not_elastic import NotElastic
from foveate.models.weights.timm_architectures import ON_HUB, model_name
from foveate.models.weights.timm_config import import_timm, sentence, vit_config
from foveate.models.weights.timm_format import NEAREST_CROP, nearest_crop
from foveate.models.zoo import CheckpointCard

log = logging.getLogger(__name__)

_SAFE = {"hf_hub_filename": "model.safetensors"}
"""Without this entry timm falls back to a pickle where a repository has no safetensors file."""
_TOLERANCE = 1e-3
"""The largest accepted difference between the trunk's output and timm's."""


def load(spec: str, zoo_names: Sequence[str] = ()) -> Checkpoint:
    """A pretrained timm model by timm's name. zoo_names: suggested where timm has no such model.

    Raises SetupError when timm is missing, has no such model or weights, or cannot fetch them, and NotElastic
    when the trunk does not represent the model exactly.
    """
    timm, name = import_timm(spec, zoo_names), model_name(spec)
    check_known(timm, name, zoo_names)
    # On the meta device the model has no weights: a model that is refused is never downloaded.
    skeleton: Any = create(timm, name, pretrained=False)
    _trunk(skeleton, name)
    check_has_weights(skeleton, name)
    return convert(create(timm, name, pretrained=True), name)


def check_has_weights(skeleton: Any, name: str) -> None:
    """Raise SetupError for a timm module whose weights are not published as safetensors."""
    if not skeleton.pretrained_cfg.get("hf_hub_id"):
        raise SetupError(f"timm has no safetensors weights for {name}; random:{name} has random ones")


def card(name: str) -> CheckpointCard:
    """The card of a timm model, which needs no weights. Raises SetupError as `load` does."""
    timm = import_timm(name)
    check_known(timm, name, ())
    module = create(timm, name, pretrained=False)
    return _card(module, vit_config(module, name), name)


def convert(module: nn.Module, name: str) -> Checkpoint:
    """The trunk with a timm module's weights. Those that it does not join share storage with the module's.

    Raises NotElastic when the module is another kind of model, or when the outputs for a random image differ.
    """
    checkpoint = _trunk(module, name)
    difference = _disagreement(checkpoint.model, module)
    # In this form the condition refuses a difference of NaN too.
    if not difference <= _TOLERANCE:
        raise NotElastic(f"{name} does not fit the trunk: its output differs from timm's by {difference:.2g}")
    return checkpoint


def _trunk(module: nn.Module, name: str) -> Checkpoint:
    """The converted module, unchecked. Raises NotElastic for a module that the trunk does not represent."""
    try:
        return attach(_card(module, vit_config(module, name), name), trunk_names(module.state_dict()), name)
    except SetupError as error:
        raise NotElastic(error.detail) from error


@torch.inference_mode()
def _disagreement(model: ElasticViT, module: nn.Module) -> float:
    """The largest difference on one random image, relative to the largest output if that is above one."""
    side, depth = model.config.image_size, model.config.depth
    image = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    ours = model(image, ResolvedPlan(reduction.create("none", model), depth)).logits
    theirs = module.eval()(image)
    if ours.shape != theirs.shape:
        return float("inf")
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1))


def _card(module: Any, shape: ViTConfig, name: str) -> CheckpointCard:
    """Name, labels, preprocessing and origin from timm's configuration of the model."""
    config = module.pretrained_cfg
    data = data_config(module, name)
    _, height, width = data["input_size"]
    if height != width:
        raise NotElastic(f"{name} takes images of {width}x{height} pixels, and the trunk's are square")
    origin = config.get("hf_hub_id")
    return CheckpointCard(
        name=variant(name.partition("@")[0].rpartition("/")[2]),
        config=shape,
        labels=labels_of(config, shape.classes, name),
        input=input_spec(data),
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        description=f"{config.get('architecture') or name} of timm",
        licence=config.get("license") or "",
        source=ON_HUB[0] + origin if origin else config.get("url") or "",
    )


def data_config(module: Any, name: str) -> Mapping[str, Any]:
    """timm's preprocessing of a model. Raises SetupError for images that the decoder does not make.

    Other images than square ones are resized from a square one that shows the whole image.
    """
    data: Mapping[str, Any] = import_module("timm.data").resolve_model_data_config(module)
    channels, height, width = data["input_size"]
    whole = data["crop_mode"] == "squash" and data["crop_pct"] == 1
    if channels != 3:
        raise SetupError(f"{name} takes images of {channels} channels, and images have 3")
    if height != width and not whole:
        raise SetupError(f"{name} crops images to {width}x{height} pixels, and only square crops are made")
    known_interpolation = data["interpolation"] in get_args(Interpolation)
    if not (known_interpolation and data["crop_mode"] in (*get_args(CropMode), *NEAREST_CROP)):
        kind = f"{data['crop_mode']} crops and {data['interpolation']} interpolation"
        raise SetupError(f"{name} takes images with {kind}, which the decoder does not have")
    return {**data, "crop_mode": nearest_crop(data["crop_mode"], name)}


def input_spec(data: Mapping[str, Any]) -> InputSpec:
    """The decoder's part of `data_config`."""
    return InputSpec(data["crop_pct"], data["crop_mode"], data["interpolation"])


def labels_of(config: Mapping[str, Any], classes: int, name: str) -> tuple[str, ...]:
    """Class names from the checkpoint's configuration, else ImageNet's where the number of classes fits.

    Raises SetupError for names that are one text.
    """
    data = import_module("timm.data")
    for entry in ("label_names", "label_descriptions"):
        check_label_names(config, entry, f"the configuration of {name}")
    labels = list(config.get("label_names") or ())
    described = config.get("label_descriptions") or {}
    if isinstance(described, Mapping):
        labels = [described.get(label, label) for label in labels]
    else:
        labels = list(described)
    subset = data.infer_imagenet_subset({"num_classes": classes})
    if not labels and subset is not None:
        labels = data.ImageNetInfo(subset).label_descriptions()
    if labels and len(labels) != classes:
        log.warning(
            "%s names %d labels, which do not name its %d classes, and are left out",
            name,
            len(labels),
            classes,
        )
        return ()
    return tuple(labels)


def check_known(timm: Any, name: str, zoo_names: Sequence[str]) -> None:
    """Raise SetupError for a name or tag that timm does not list. Names on the Hub are not checked here."""
    if name.startswith(ON_HUB):
        return
    if not timm.is_model(name):
        if name in zoo_names:
            raise SetupError(
                f"{name!r} comes with its weights and is no name of timm: pass it alone, as --model {name}"
            )
        known = [*zoo_names, *timm.list_models(), *timm.list_pretrained()]
        if "/" in name:
            known.append(ON_HUB[0] + name)
        hint = did_you_mean(name, known) or did_you_mean(name.partition(".")[0], known)
        raise SetupError(f"{name!r} is neither in the zoo nor a name timm knows{hint}")
    architecture, _, tag = name.partition(".")
    tagged = timm.list_pretrained(f"{architecture}.*")
    if tag and name not in tagged:
        available = ", ".join(tagged[:10]) or "no weights at all"
        hint = did_you_mean(tag, [each.partition(".")[2] for each in tagged]) or f"; there is {available}"
        raise SetupError(f"{architecture} has no weights tagged {tag!r} in timm{hint}")


def create(timm: Any, name: str, pretrained: bool, device: str | None = None, **arguments: Any) -> nn.Module:
    """timm's module in eval mode. device: none is the CPU, and the meta device without pretrained weights.

    arguments: passed to timm. Raises SetupError when timm cannot load it or fetch its weights.
    """
    on_hub = pretrained or name.startswith(ON_HUB)
    with hub_access(name) if on_hub else nullcontext():
        return _create(timm, name, pretrained, device, arguments)


def _create(
    timm: Any, name: str, pretrained: bool, device: str | None, arguments: Mapping[str, Any]
) -> nn.Module:
    try:
        with torch.device(device or ("cpu" if pretrained else "meta")):
            module: nn.Module = timm.create_model(
                name, pretrained=pretrained, pretrained_cfg_overlay=_SAFE if pretrained else None, **arguments
            )
    except (OSError, http_error()) as error:
        alternative = "the path of a local file or folder of weights can be given instead"
        raise SetupError(
            f"the weights of {name} could not be fetched ({sentence(error)}); {alternative}"
        ) from error
    except (RuntimeError, ValueError, TypeError, KeyError, AssertionError, SafetensorError) as error:
        raise SetupError(f"timm cannot load {name}: {sentence(error)}") from error
    return module.eval()
