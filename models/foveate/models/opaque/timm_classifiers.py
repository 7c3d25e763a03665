"""timm's networks that the elastic trunk does not represent, by timm's name or folder."""

import inspect
import re
from typing import Any

import torch
from torch import nn

from foveate.core.class_labels import numbered_labels
from foveate.core.default_models import PHOTO_NAMES
from foveate.models import zoo
from foveate.models.opaque.checkpoint import OpaqueCheckpoint
from foveate.models.opaque.sizes import smaller_sizes
from foveate.models.weights.checkpoint import variant
from foveate.models.weights.hub import RANDOM
from foveate.models.weights.timm_architectures import ON_HUB, model_name
from foveate.models.weights.timm_config import import_timm
from foveate.models.weights.timm_models import (
    check_has_weights,
    check_known,
    create,
    data_config,
    input_spec,
    labels_of,
)

FLEXIBLE = "dynamic_img_size"
"""timm's argument that makes a vision transformer take any image size."""
IMAGE_SIZE = "img_size"
"""timm's argument for the side of the input, of networks with parameters that depend on it."""
_IMAGE_TOWERS = re.compile(r"clip|_pe_core_")
"""Names of towers that were trained to embed images.

timm's configurations describe their projections as classes (`num_classes`, `classifier`), just as they
describe a network with as many classes that have no names. So the name alone tells them apart.
"""


def load(spec: str) -> OpaqueCheckpoint:
    """A network by timm's name, with or without `random:`.

    Raises SetupError when timm is missing, has no such model or weights, cannot fetch them, or when the model
    takes images that the decoder does not make.
    """
    name = model_name(spec.removeprefix(RANDOM))
    timm = import_timm(spec)
    check_known(timm, name, (*zoo.names(), *PHOTO_NAMES))
    empty: Any = create(timm, name, pretrained=False)
    data_config(empty, name)
    if spec.startswith(RANDOM):
        return describe(_random(timm, name, flexible_sizes(empty)), name, "random weights")
    check_has_weights(empty, name)
    return describe(create(timm, name, pretrained=True, **flexible_sizes(empty)), name)


def flexible_sizes(module: nn.Module) -> dict[str, Any]:
    """What to pass to timm so that the model takes more image sizes."""
    return {FLEXIBLE: True} if constructor_takes(module, FLEXIBLE) else {}


def constructor_takes(module: nn.Module, argument: str) -> bool:
    """Whether the constructor of a module has an argument of this name."""
    return argument in inspect.signature(type(module).__init__).parameters


def _random(timm: Any, name: str, arguments: dict[str, Any]) -> nn.Module:
    """timm's own initial values under a fixed seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module: nn.Module = timm.create_model(name, pretrained=False, **arguments)
    return module.eval()


def describe(module: Any, name: str, description: str = "") -> OpaqueCheckpoint:
    """A timm module with its labels, preprocessing, image sizes and origin.

    Raises SetupError for images that the decoder does not make.
    """
    config, data = module.pretrained_cfg, data_config(module, name)
    classes, side = int(module.num_classes), int(data["input_size"][1])
    labels = labels_of(config, classes, name)
    if not labels and not gives_embeddings(name):
        labels = numbered_labels(classes)
    origin = config.get("hf_hub_id")
    fixed = bool(config.get("fixed_input_size")) and not flexible_sizes(module)
    return OpaqueCheckpoint(
        name=variant(name.rstrip("/").partition("@")[0].rpartition("/")[2]),
        model=module.requires_grad_(False),
        labels=labels,
        image_size=side,
        input=input_spec(data),
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        sizes=() if fixed else smaller_sizes(module, side),
        description=description or f"{config.get('architecture') or name} of timm",
        licence=config.get("license") or "",
        source=ON_HUB[0] + origin if origin else config.get("url") or "",
    )


def gives_embeddings(name: str) -> bool:
    """Whether timm's numbered outputs of this model are an embedding and no classes, if none has a name."""
    return _IMAGE_TOWERS.search(name) is not None
