"""What a plan may change about a model of transformers, and how it is changed for one forward."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from foveate.core.errors import BadPlan
from foveate.core.plan import Plan, sampled_frames


@dataclass(frozen=True, slots=True)
class Axes:
    """The plans of one architecture."""

    step: int
    """Image sizes are multiples of it, or the checkpoint's own; 0: its own alone."""
    patch: int
    """Pixels along a side of what one token stands for at the end."""
    blocks: int
    """That a picture goes through."""
    depths: bool = False
    """Whether any of the blocks may be the last."""
    least: int = 0
    """The smallest image size."""
    tubelet: int = 0
    """Frames that one token stands for, of which plans take multiples; 0: all frames or none."""


def check(plan: Plan, full: Plan, axes: Axes, frames: int) -> None:
    """Raises BadPlan, one sentence, for a plan that these axes do not have. `frames`: of full."""
    name = full.variant
    if plan.variant != name:
        raise BadPlan(f"{plan.variant} is not a variant of {name}")
    if plan.precision != full.precision:
        raise BadPlan(f"{name} is loaded in {full.precision}, not in {plan.precision}")
    if plan.image_size != full.image_size and (not axes.step or plan.image_size % axes.step):
        which = f"multiples of {axes.step} up to" if axes.step else "none but"
        raise BadPlan(f"the image sizes of {name} are {which} {full.image_size}")
    if not axes.least <= plan.image_size <= full.image_size:
        raise BadPlan(f"image sizes of {name} go from {axes.least or axes.step} to {full.image_size}")
    rest = plan
    if axes.depths:
        if (plan.depth or 0) > axes.blocks:
            raise BadPlan(f"{name} has {axes.blocks} blocks; depth:{plan.depth} is past its end")
        rest = replace(rest, depth=None)
    if axes.tubelet:
        if (plan.frames or 0) % axes.tubelet or (plan.frames or 0) > frames:
            raise BadPlan(f"{name} looks at multiples of {axes.tubelet} frames up to {frames}")
        rest = replace(rest, frames=None)
    if rest.parts != "full":
        has = ["an image size", *["a depth"] * axes.depths, *["frames"] * bool(axes.tubelet)]
        raise BadPlan(f"{name} runs in transformers, where a plan has {' and '.join(has)}, not {rest.parts}")


Changes = Sequence[tuple[Any, Mapping[str, Any]]]
"""Objects, and the attributes that a plan gives them."""


@contextmanager
def held(changes: Changes) -> Iterator[None]:
    """The objects with these attributes, and afterwards as they were."""
    before = [(thing, {name: getattr(thing, name) for name in values}) for thing, values in changes]
    try:
        _set(changes)
        yield
    finally:
        _set(before)


def _set(changes: Changes) -> None:
    for thing, values in changes:
        for name, value in values.items():
            setattr(thing, name, value)


def moved(table: Tensor, own: tuple[int, int], to: tuple[int, int]) -> Tensor:
    """Position embeddings (1, T * P * P, W) for fewer times and another grid (1, t * p * p, W).

    own, to: times, and patches along a side. Each time that is left keeps the embedding it had, for that
    belongs to the frames it shows; in space they are interpolated, as is usual for vision transformers.
    """
    times, side = to
    grid = table.reshape(own[0], own[1], own[1], -1)[sampled_frames(own[0], times)]
    if side != own[1]:
        channels = grid.permute(0, 3, 1, 2).float()
        scaled = F.interpolate(channels, size=(side, side), mode="bicubic", align_corners=False)
        grid = scaled.permute(0, 2, 3, 1).to(table.dtype)
    return grid.reshape(1, times * side * side, -1)
