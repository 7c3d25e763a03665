"""The compute of one forward of any module, counted on tensors without data."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

Forward = Callable[[Any, Tensor], Any]
"""A model and its pixels to its output."""


def skeleton(model: nn.Module) -> nn.Module:
    """A copy of the module on the meta device. The weights are never copied."""
    empty_tensors: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        empty = tensor.detach().to("meta")
        empty_tensors[id(tensor)] = nn.Parameter(empty, False) if isinstance(tensor, nn.Parameter) else empty
    return copy.deepcopy(model, empty_tensors)


@torch.no_grad()
def count(model: nn.Module, pixels: Tensor, forward: Forward) -> tuple[float, Any]:
    """Billions of multiply-adds of convolutions and matrix products in one forward, and its output.

    Norms, activations and resampling (deformable attention's too) are not counted, as is usual in papers.
    """
    # Fused attention has a counting rule on some devices alone; its plain form is counted on all of them.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        out = forward(model, pixels)
    return counter.get_total_flops() / 2e9, out
