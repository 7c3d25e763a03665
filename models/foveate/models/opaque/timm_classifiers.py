"""timm's networks that the elastic trunk does not represent, by timm's name or folder."""

import inspect
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.core.class_labels import numbered_labels
from foveate.core.default_models import PHOTO_NAMES
from foveate.models import zoo
from foveate.models.opaque.checkpoint import OpaqueCheckpoint
from foveate.models.opaque.sizes import INPUT_ERRORS, smaller_sizes
from foveate.models.weights.checkpoint import variant
from foveate.models.weights.hub import RANDOM
from foveate.models.weights.timm_architectures import ON_HUB, model_name
from foveate.models.weights.timm_config import import_timm, projection_of
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
POOLING = "global_pool"
"""timm's argument for how the features of patches become one vector."""
IMAGE_SIZE = "img_size"
"""timm's argument for the side of the input, of networks with parameters that depend on it."""


class Resized(nn.Module):
    """A network for images that are not square, which takes square ones that show the same."""

    def __init__(self, network: nn.Module, height: int, width: int) -> None:
        """height, width: of the network's images, in pixels."""
        super().__init__()
        self.network = network
        self.size = height, width

    def forward(self, images: Tensor) -> Tensor:
        """Resize images (B, 3, S, S) and run the network."""
        out: Tensor = self.network(F.interpolate(images, self.size, mode="bilinear", antialias=True))
        return out


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
        return describe(_random(timm, name, serving_arguments(empty)), name, "random weights")
    check_has_weights(empty, name)
    return describe(create(timm, name, pretrained=True, **serving_arguments(empty)), name)


def serving_arguments(module: nn.Module) -> dict[str, Any]:
    """What to pass to timm for a network like this module on the meta device, so that it can be served."""
    return flexible_sizes(module) | _pooling(module)


def flexible_sizes(module: nn.Module) -> dict[str, Any]:
    """What to pass to timm so that the model takes more image sizes.

    timm then takes only those that patches tile, so a model whose own size is none of them keeps it alone.
    """
    return {FLEXIBLE: True} if constructor_takes(module, FLEXIBLE) and _patches_tile(module) else {}


def _pooling(module: Any) -> dict[str, Any]:
    """timm's argument that makes an encoder for language models average the features of its patches.

    Without it such an encoder gives the tokens that the language model reads, and not one vector.
    """
    if module.num_classes or not constructor_takes(module, POOLING):
        return {}
    size = import_module("timm.data").resolve_model_data_config(module)["input_size"]
    try:
        with torch.no_grad():
            out = module(torch.empty(1, *size, device="meta"))
    except INPUT_ERRORS:
        return {}
    return {POOLING: "avg"} if isinstance(out, Tensor) and out.ndim != 2 else {}


def _patches_tile(module: Any) -> bool:
    """Whether whole patches cover the images of a timm module's own size; true where it has no patches."""
    patches = getattr(module, "patch_embed", None)
    image, patch = (getattr(patches, name, None) for name in (IMAGE_SIZE, "patch_size"))
    if not (isinstance(image, tuple) and isinstance(patch, tuple)):
        return True
    return not any(side % step for side, step in zip(image, patch, strict=True))


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
    classes, (_, height, width) = int(module.num_classes), data["input_size"]
    side = max(height, width)
    labels = labels_of(config, classes, name)
    if not labels and not projection_of(module):
        labels = numbered_labels(classes)
    origin = config.get("hf_hub_id")
    module.requires_grad_(False)
    fixed = height != width or (bool(config.get("fixed_input_size")) and not flexible_sizes(module))
    return OpaqueCheckpoint(
        name=variant(name.rstrip("/").partition("@")[0].rpartition("/")[2]),
        model=Resized(module, height, width) if height != width else module,
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
