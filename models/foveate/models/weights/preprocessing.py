"""The preprocessing of a checkpoint's images, read from the JSON file beside its weights."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from foveate.core.checkpoint_options import IMAGE_SIZES, MAX_IMAGE_SIZE, MIN_IMAGE_SIZE
from foveate.core.errors import SetupError
from foveate.core.model import InputSpec
from foveate.models.zoo import RGB

FINE = (1, 3)
"""Pillow's numbers of Lanczos and bicubic. They become bicubic here, and every other filter bilinear."""


CONVNEXT_SQUASHED, CONVNEXT_CROP = 384, 224 / 256
"""transformers' ConvNeXT processor squashes images from this side on, and crops smaller ones by a share."""
POOLFORMER_CROP = 0.9
LEVIT_SCALE = 256 / 224
"""transformers' LeViT processor resizes the shorter side to the size times this, before it crops."""


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """What is done to an image before the model gets it."""

    side: int
    """Side of the square image in pixels."""
    input: InputSpec
    mean: RGB
    """Subtracted from each channel in 0..1, before the division by `std`."""
    std: RGB
    reversed: bool = False
    """Whether the model takes channels in the order blue, green, red."""


def parse_preprocessing(table: Mapping[str, Any], where: str, offset: bool = False) -> Preprocessing:
    """A preprocessor's JSON table as what the decoder and the runner do.

    Images are square here: of a height and a width the shorter one is used. offset: whether 1 is subtracted
    where the table does not say it. Raises SetupError, one sentence that starts with `where`.
    """
    size = edge(table.get("size"), where)
    crop = edge(table.get("crop_size"), where) if table.get("do_center_crop", True) else None
    side = crop or size
    if side is None:
        raise SetupError(f"{where} does not say how large images are: it has no size and no crop_size")
    resized: float = size if size and table.get("do_resize", True) else side
    squash = isinstance(table.get("size"), Mapping) and "height" in table["size"]
    processor = str(table.get("image_processor_type") or table.get("feature_extractor_type") or "")
    if processor.startswith("ConvNext"):
        squash = side >= CONVNEXT_SQUASHED
        resized = side if squash else side / _crop_pct(table.get("crop_pct", CONVNEXT_CROP), where)
    elif processor.startswith("PoolFormer"):
        resized = side / _crop_pct(table.get("crop_pct", POOLFORMER_CROP), where)
    elif processor.startswith("Levit") and size:
        resized = size * LEVIT_SCALE
    mean, std = _normalisation(table, where, offset)
    if processor.startswith("EfficientNet") and table.get("include_top", True):
        std = (std[0] ** 2, std[1] ** 2, std[2] ** 2)  # its classifier gets images divided by it twice
    spec = InputSpec(
        crop_pct=_share(side, resized),
        crop_mode="squash" if squash else "center",
        interpolation="bicubic" if table.get("resample") in FINE else "bilinear",
    )
    return Preprocessing(side, spec, mean, std, bool(table.get("do_flip_channel_order", False)))


def _crop_pct(value: object, where: str) -> float:
    """A stated share of the image's side, above 0 and at most 1."""
    if not isinstance(value, int | float) or not 0 < value <= 1:
        raise SetupError(f"{where}: crop_pct is {value}, which is no share above 0 and at most 1")
    return float(value)


def _share(side: int, resized: float) -> float:
    """The share of a resized image that is cropped. The decoder computes the resized side from it again."""
    share = min(1.0, side / resized)
    # The decoder rounds down, and the quotient of a rounded share may be a little too small.
    return share if side / share >= resized else math.nextafter(share, 0)


def edge(value: object, where: str) -> int | None:
    """The shorter side of a size in any of transformers' forms; None where there is no size."""
    if value is None:
        return None
    sides = [value]
    if isinstance(value, Mapping):
        sides = [value[key] for key in ("height", "width", "shortest_edge") if value.get(key) is not None]
    if not sides or any(
        type(side) is not int or not MIN_IMAGE_SIZE <= side <= MAX_IMAGE_SIZE for side in sides
    ):
        raise SetupError(f"{where} gives a size that is not served: {str(value)[:80]}; {IMAGE_SIZES}")
    return min(side for side in sides if isinstance(side, int))


def _normalisation(table: Mapping[str, Any], where: str, offset: bool) -> tuple[RGB, RGB]:
    """Mean and deviation of channels in 0..1, for any factor by which the preprocessor scales bytes."""
    rescale = table.get("rescale_factor", 1 / 255) if table.get("do_rescale", True) else 1.0
    shift = 1.0 if table.get("offset", offset) and table.get("do_rescale", True) else 0.0
    if type(rescale) not in (int, float) or not 0 < rescale < math.inf:
        raise SetupError(f"{where}: rescale_factor is {rescale}, which is no factor above 0")
    scale, normalise = 255 * rescale, table.get("do_normalize", True)
    mean = _rgb(table.get("image_mean"), f"{where}: image_mean") if normalise else (0.0, 0.0, 0.0)
    std = _rgb(table.get("image_std"), f"{where}: image_std") if normalise else (1.0, 1.0, 1.0)
    if min(std) <= 0:
        raise SetupError(f"{where}: image_std must be above 0, not {min(std)}")
    red, green, blue = ((m + shift) / scale for m in mean)
    return (red, green, blue), (std[0] / scale, std[1] / scale, std[2] / scale)


def _rgb(value: object, where: str) -> RGB:
    """Three numbers; a single number stands for three equal ones."""
    three: Sequence[Any] = value if isinstance(value, list | tuple) else [value] * 3
    if len(three) != 3 or not all(type(v) in (int, float) and math.isfinite(v) for v in three):
        raise SetupError(f"{where} takes three numbers, one per channel, not {value}")
    red, green, blue = (float(v) for v in three)
    return red, green, blue
