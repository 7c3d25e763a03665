"""Small opaque networks that score images by their colours."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from foveate.core.model import InputSpec
from foveate.models.opaque.checkpoint import OpaqueCheckpoint
from foveate.models.opaque.sizes import smaller_sizes

LABELS = ("red", "green", "blue")


class ColourSums(nn.Module):
    """Scores each class by the mean of its channel."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))
        self.mix = nn.Conv2d(3, 3, 1, bias=False)
        nn.init.eye_(self.mix.weight[:, :, 0, 0])

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.gain * self.mix(images).mean((2, 3))
        return out


def checkpoint(name: str = "large", side: int = 64, gain: float = 50.0, **changes: Any) -> OpaqueCheckpoint:
    network = ColourSums(gain).eval().requires_grad_(False)
    own = OpaqueCheckpoint(
        name, network, LABELS, side, InputSpec(), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5),
        sizes=smaller_sizes(network, side),
    )  # fmt: skip
    return replace(own, **changes)
