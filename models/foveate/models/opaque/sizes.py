"""The image sizes that a network takes, which are found by trying each one on tensors without data."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from foveate.models.runners.forward_cost import skeleton

_NORMS = frozenset({F.batch_norm, F.layer_norm, F.group_norm})
STEPS = (32, 16, 14, 8)
"""Sides to try are multiples of the first of these steps with which the network takes any smaller side."""
SMALLEST_SHARE = 0.45
"""The smallest side to try, as a share of the network's own. Below it, classifiers are rarely usable."""
MAX_SIZES = 5
"""Sides to try at most. Fewer are tried of networks for large images."""
INPUT_ERRORS = (
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    ArithmeticError,
)
"""What networks raise for inputs that they cannot run."""


def smaller_sizes(model: nn.Module, own: int) -> tuple[int, ...]:
    """Smaller sides in pixels that the network takes, ascending; empty where it takes its own side alone.

    A network takes a side if it gives as many values as at its own. Networks that do not run without data
    have none.
    """
    empty = skeleton(model)
    values = outputs(empty, own)
    if values is None:
        return ()

    def takes(side: int) -> bool:
        return outputs(empty, side) == values

    for step in STEPS:
        sides = [side for side in range(step, own, step) if side >= SMALLEST_SHARE * own]
        nearest, *others = sides[::-1] or [0]
        if nearest and takes(nearest):
            others = others[:: max(1, -(-len(others) // (MAX_SIZES - 1)))]
            return tuple(sorted([nearest, *(side for side in others if takes(side))]))
    return ()


class WithoutNorms(TorchFunctionMode):
    """Skips norms, which change no shape: without data, one takes longer than a convolution."""

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """The input of a norm, or what the function gives."""
        if function in _NORMS and args:
            return args[0]
        return function(*args, **(kwargs or {}))


@torch.no_grad()
def outputs(model: nn.Module, side: int) -> int | None:
    """The number of values that a network on the meta device gives for an image; None if it does not run."""
    try:
        with WithoutNorms():
            out = model(torch.empty(1, 3, side, side, device="meta"))
    except INPUT_ERRORS:
        return None
    return int(out.shape[1]) if isinstance(out, torch.Tensor) and out.ndim == 2 else None
