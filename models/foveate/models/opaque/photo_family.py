"""The family that classifies photographs: EfficientNet-Lite with ImageNet's 1000 classes."""

from functools import cache
from importlib.resources import files

from foveate.core.default_models import PHOTO_MODEL, PHOTO_PACKAGES
from foveate.core.model import InputSpec
from foveate.models.opaque.checkpoint import OpaqueCheckpoint
from foveate.models.opaque.efficientnet_lite import SCALINGS
from foveate.models.opaque.efficientnet_lite_weights import load_network
from foveate.models.zoo import RGB

SIZES = (128, 160, 192, 224, 240, 260)
"""Image sizes of plans in pixels; each member takes those up to its own."""
MEAN: RGB = (127 / 255,) * 3
STD: RGB = (128 / 255,) * 3
"""The networks take (x - 127) / 128 of bytes x."""
DESCRIPTION = "EfficientNet-Lite: classifies photographs as one of ImageNet's 1000 classes"
CROP_MARGIN = 32
"""Evaluation crops the middle of an image that was resized to this many pixels more than the input."""


def members(name: str) -> tuple[str, ...]:
    """The members that answer under a name, the full model first; empty for a name that is not shipped."""
    if name == PHOTO_MODEL:
        return tuple(reversed(tuple(PHOTO_PACKAGES)))
    return (name,) if name in PHOTO_PACKAGES else ()


def read(variant: str) -> OpaqueCheckpoint:
    """A member with its ImageNet weights. Raises SetupError if its weights are not installed."""
    side = SCALINGS[variant].image_size
    return OpaqueCheckpoint(
        name=variant,
        model=load_network(variant),
        labels=labels(),
        image_size=side,
        input=InputSpec(crop_pct=side / (side + CROP_MARGIN), crop_mode="center", interpolation="bicubic"),
        mean=MEAN,
        std=STD,
        sizes=tuple(size for size in SIZES if size < side),
        description=DESCRIPTION,
        licence="Apache-2.0",
        source=f"the package {PHOTO_PACKAGES[variant].replace('_', '-')}, with weights of the authors",
    )


@cache
def labels() -> tuple[str, ...]:
    """One English name for each class of ImageNet-1k, in the order of the logits."""
    lines = (files(__package__) / "imagenet_labels.txt").read_text("utf-8").splitlines()
    return tuple(line for line in lines if not line.startswith("#"))
