"""What a forward of any module costs, counted while it runs on tensors without data."""

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
    """The same module on the meta device; the weights are never copied."""
    kept: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        empty = tensor.detach().to("meta")
        kept[id(tensor)] = nn.Parameter(empty, False) if isinstance(tensor, nn.Parameter) else empty
    return copy.deepcopy(model, kept)


@torch.no_grad()
def count(model: nn.Module, pixels: Tensor, forward: Forward) -> tuple[float, Any]:
    """Billions of multiply-adds of convolutions and matrix products, and the output, of one forward.

    Norms, activations and resampling (that of deformable attention too) are not counted, as in papers.
    """
    # Fused attention is told apart by device; its plain form is counted on all of them.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        out = forward(model, pixels)
    return counter.get_total_flops() / 2e9, out
