"""The batch of an own model: images scaled to the size of the plan, prepared one by one, and stacked."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from foveate.core.errors import RunFailed
from foveate.core.model import Interpolation
from foveate.core.plan import Plan

FILTERS: Mapping[Interpolation, Image.Resampling] = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


@dataclass(frozen=True, slots=True)
class PreparedBatch:
    """Media, and what `predict` gets for them."""

    media: Sequence[Any]
    plan: Plan | None = None
    """The plan that the inputs are prepared for; None if they are not prepared yet."""
    inputs: Any = None
    """One for each item that has not failed: an array, a tensor or a list."""
    failures: Mapping[int, Exception] = field(default_factory=dict)
    """The errors of `preprocess`, by the position of the item."""

    def __len__(self) -> int:
        return len(self.media)


def prepare(
    media: Sequence[Any], plan: Plan, interpolation: Interpolation, preprocess: Callable[[Any], Any] | None
) -> PreparedBatch:
    """Scale pixels (S, S, 3) to the plan's size, call `preprocess` with each of them, and stack them.

    An error of `preprocess` fails its item alone. Raises RunFailed for items that cannot be stacked.
    """
    images = [scaled(pixels, plan.image_size, interpolation) for pixels in media]
    if preprocess is None:
        return PreparedBatch(media, plan, np.stack(images))
    items, failures = [], dict[int, Exception]()
    for number, pixels in enumerate(images):
        try:
            items.append(preprocess(Image.fromarray(pixels)))
        except Exception as error:
            failures[number] = error
        except BaseException as error:  # such as sys.exit, or a panic of a library in Rust
            failures[number] = failure_of("preprocess", error)
    return PreparedBatch(media, plan, stacked(items), failures)


def failure_of(method: str, error: BaseException) -> RunFailed:
    """What stands for an exception that would end more than its request."""
    failure = RunFailed(f"{method} of the model raised {type(error).__name__}")
    failure.__cause__ = error
    return failure


def scaled(pixels: Any, side: int, interpolation: Interpolation) -> Any:
    """Square RGB pixels at this side. Raises RunFailed for anything else."""
    shape = getattr(pixels, "shape", None)
    if shape is None or len(shape) != 3 or shape[0] != shape[1] or shape[2] != 3:
        raise RunFailed(f"expected square RGB pixels, got {f'the shape {shape}' if shape else type(pixels)}")
    if shape[0] == side:
        return pixels
    image = Image.fromarray(pixels).resize((side, side), FILTERS[interpolation])
    return np.asarray(image)


def stacked(items: Sequence[Any]) -> Any:
    """NumPy arrays or torch tensors along a new first axis; a list of anything else.

    Raises RunFailed for arrays of different shapes.
    """
    kinds = {type(item) for item in items}
    if len(kinds) != 1:
        return list(items)
    array = kinds.pop()
    if not (issubclass(array, np.ndarray) or hasattr(array, "detach")):
        return list(items)
    shapes = sorted({tuple(item.shape) for item in items})
    if len(shapes) > 1:
        raise RunFailed(
            f"preprocess returned arrays of the shapes {shapes[0]} and {shapes[1]}, which make no batch"
        )
    if issubclass(array, np.ndarray):
        return np.stack(items)
    import torch  # the items are tensors: it is imported already

    return torch.stack(list(items))
