"""Modules of timm with random weights, and the trunk's outputs to compare with theirs."""

from typing import Any

import torch
from torch import Tensor, nn

from foveate.models import reduction
from foveate.models.vit.vit import ResolvedPlan, TrunkOutput
from foveate.models.weights.checkpoint import Checkpoint
from tests.support.torchvision_ops import import_timm


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Set every parameter far from 0 and 1, where a missing use of it would not show."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        gain = parameter.ndim == 1 and bool((parameter != 0).all())
        fan_in = parameter[0].numel() if parameter.ndim in (2, 4) else 4
        with torch.no_grad():
            parameter.copy_(0.7 + 0.2 * noise if gain else noise * fan_in**-0.5)
    return module.eval()


def create(name: str, **arguments: Any) -> nn.Module:
    """A model of timm, randomised."""
    with torch.random.fork_rng():
        return randomise(import_timm().create_model(name, **arguments))


def images(side: int, seed: int = 1) -> Tensor:
    """Two random images."""
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(seed))


def output(checkpoint: Checkpoint, batch: Tensor) -> Tensor:
    """The trunk's output at full compute."""
    model = checkpoint.model
    out: TrunkOutput = model(batch, ResolvedPlan(reduction.create("none", model), model.config.depth))
    return out.logits
