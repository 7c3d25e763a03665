"""What plans can change about a model of transformers, and how it is changed for one forward."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from foveate.core.errors import BadPlan
from foveate.core.plan import Plan, sampled_frames
from foveate.models.runners.base import check_model


@dataclass(frozen=True, slots=True)
class PlanAxes:
    """The parts of a plan that one architecture supports."""

    step: int
    """Image sizes are multiples of it or the checkpoint's own size. 0: its own size alone."""
    patch: int
    """Side in pixels of the square that one token represents at the end."""
    blocks: int
    """Blocks of the whole model."""
    depths: bool = False
    """Whether a plan can have a depth."""
    min_size: int = 0
    """The smallest image size in pixels."""
    tubelet: int = 0
    """Frames that one token represents. Plans take multiples of it. 0: a plan cannot have fewer frames."""


def check(plan: Plan, full: Plan, axes: PlanAxes, frames: int) -> None:
    """Raise BadPlan, with one sentence, for a plan that these axes do not support. frames: of full."""
    name = full.variant
    check_model(plan, full, {name})
    if plan.image_size != full.image_size and (not axes.step or plan.image_size % axes.step):
        sizes = f"multiples of {axes.step} up to" if axes.step else "none but"
        raise BadPlan(f"the image sizes of {name} are {sizes} {full.image_size}, not {plan.image_size}")
    if not axes.min_size <= plan.image_size <= full.image_size:
        raise BadPlan(
            f"image sizes of {name} go from {axes.min_size or axes.step} to {full.image_size}, "
            f"not {plan.image_size}"
        )
    rest = plan
    if axes.depths:
        if (plan.depth or 0) > axes.blocks:
            raise BadPlan(f"{name} has {axes.blocks} blocks; depth:{plan.depth} is past its end")
        rest = replace(rest, depth=None)
    if axes.tubelet:
        if (plan.frames or 0) % axes.tubelet or (plan.frames or 0) > frames:
            raise BadPlan(
                f"{name} takes multiples of {axes.tubelet} frames up to {frames}, not frames:{plan.frames}"
            )
        rest = replace(rest, frames=None)
    if rest.parts != "full":
        parts = ["an image size", *["a depth"] * axes.depths, *["frames"] * bool(axes.tubelet)]
        raise BadPlan(
            f"{name} runs in transformers, where a plan has {' and '.join(parts)}, not {rest.parts}"
        )


Changes = Sequence[tuple[Any, Mapping[str, Any]]]
"""Objects, and the values that a plan gives to their attributes."""


@contextmanager
def changed(changes: Changes) -> Iterator[None]:
    """Set the attributes for the duration of the context, then restore them."""
    before = [(target, {name: getattr(target, name) for name in values}) for target, values in changes]
    try:
        _set(changes)
        yield
    finally:
        _set(before)


def _set(changes: Changes) -> None:
    for target, values in changes:
        for name, value in values.items():
            setattr(target, name, value)


def resize_positions(table: Tensor, own: tuple[int, int], to: tuple[int, int]) -> Tensor:
    """Position embeddings (1, T * P * P, W) for fewer times and another grid: (1, t * p * p, W).

    own, to: number of times, and patches along a side. Each time that remains keeps its embedding, since it
    belongs to the frames that it shows. In space the embeddings are interpolated, as is usual for vision
    transformers.
    """
    times, side = to
    grid = table.reshape(own[0], own[1], own[1], -1)[sampled_frames(own[0], times)]
    if side != own[1]:
        channels = grid.permute(0, 3, 1, 2).float()
        scaled = F.interpolate(channels, size=(side, side), mode="bicubic", align_corners=False)
        grid = scaled.permute(0, 2, 3, 1).to(table.dtype)
    return grid.reshape(1, times * side * side, -1)
