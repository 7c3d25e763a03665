"""How a checkpoint wants its pictures, read from the JSON that lies beside its weights."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from foveate.core.errors import SetupError
from foveate.core.model import InputSpec
from foveate.models.zoo import RGB

FINE = (1, 3)
"""Lanczos and bicubic, as Pillow numbers them; they become bicubic, and every other filter bilinear."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a preprocessor does to a picture before the model sees it."""

    side: int
    """Of the square picture, in pixels."""
    input: InputSpec
    mean: RGB
    """Subtracted from each channel of an image in 0..1, before the division by `std`."""
    std: RGB
    reversed: bool = False
    """The channels come as blue, green, red."""


def prepared(table: Mapping[str, Any], where: str, offset: bool = False) -> Prepared:
    """A preprocessor's table as what the decoder and the runner do.

    Pictures are square here: of a height and a width the shorter counts. `offset`: what its class does where
    the table is silent about the subtraction of 1. Raises SetupError, one sentence that starts with `where`.
    """
    size = _edge(table.get("size"), where)
    crop = _edge(table.get("crop_size"), where) if table.get("do_center_crop", True) else None
    side = crop or size
    if side is None:
        raise SetupError(f"{where} does not say how large pictures are to be")
    resized = size if size and table.get("do_resize", True) else side
    squash = isinstance(table.get("size"), Mapping) and "height" in table["size"]
    mean, std = _range(table, where, offset)
    spec = InputSpec(
        crop_pct=min(1.0, side / resized),
        crop_mode="squash" if squash else "center",
        interpolation="bicubic" if table.get("resample") in FINE else "bilinear",
    )
    return Prepared(side, spec, mean, std, bool(table.get("do_flip_channel_order", False)))


def _edge(value: object, where: str) -> int | None:
    """The shorter side of a size in any of the forms that were ever written; None for none."""
    if value is None:
        return None
    sides = [value]
    if isinstance(value, Mapping):
        sides = [value[key] for key in ("height", "width", "shortest_edge") if value.get(key) is not None]
    if not sides or any(type(side) is not int or not 10 <= side <= 9999 for side in sides):
        raise SetupError(f"{where} gives a size that is not served: {value}")
    return min(side for side in sides if isinstance(side, int))


def _range(table: Mapping[str, Any], where: str, offset: bool) -> tuple[RGB, RGB]:
    """Mean and deviation of pictures in 0..1, whatever the preprocessor scales their bytes to."""
    rescale = table.get("rescale_factor", 1 / 255) if table.get("do_rescale", True) else 1.0
    shift = 1.0 if table.get("offset", offset) and table.get("do_rescale", True) else 0.0
    if type(rescale) not in (int, float) or not 0 < rescale < math.inf:
        raise SetupError(f"{where} rescales pictures by {rescale}, which is no factor")
    scale, normal = 255 * rescale, table.get("do_normalize", True)
    mean = _rgb(table.get("image_mean"), f"{where}: image_mean") if normal else (0.0, 0.0, 0.0)
    std = _rgb(table.get("image_std"), f"{where}: image_std") if normal else (1.0, 1.0, 1.0)
    if min(std) <= 0:
        raise SetupError(f"{where}: image_std is to be above 0")
    red, green, blue = ((m + shift) / scale for m in mean)
    return (red, green, blue), (std[0] / scale, std[1] / scale, std[2] / scale)


def _rgb(value: object, where: str) -> RGB:
    three: Sequence[Any] = value if isinstance(value, list | tuple) else [value] * 3
    if len(three) != 3 or not all(type(v) in (int, float) and math.isfinite(v) for v in three):
        raise SetupError(f"{where} takes three numbers, one a channel, not {value}")
    red, green, blue = (float(v) for v in three)
    return red, green, blue
