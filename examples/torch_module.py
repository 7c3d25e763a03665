"""A torch module as a model of your own.

    python examples/torch_module.py   # or: foveate serve --model examples/torch_module.py:Model
    curl -F file=@examples/drawn/fox.jpg http://127.0.0.1:8000/classify

`foveate profile examples/torch_module.py:Model --data IMAGES` measures its sizes; the server then uses them.
"""

from typing import Any

import torch
from torch import nn

import foveate.serve


class DominantColour(nn.Module):
    """Stands for a network of your own: by how much pixels are more red, green or blue than grey."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3, 3, 3, padding=1)
        weight = 30 * (torch.eye(3) - 1 / 3)
        nn.init.zeros_(self.mix.bias)  # type: ignore[arg-type]
        self.mix.weight.data = weight[:, :, None, None].expand(3, 3, 3, 3) / 9

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3) logits of pixels (B, 3, S, S) in 0..1."""
        mixed: torch.Tensor = self.mix(pixels)
        return mixed.relu().mean((2, 3))


class Model:
    """Says which colour dominates an image."""

    name = "colour"
    labels = ("red", "green", "blue")
    sizes = (64, 128, 224)
    softmax = True  # the network gives logits
    version = "1"  # changes with the weights; answers are cached under it

    def __init__(self) -> None:
        self.net = DominantColour().eval()

    def predict(self, batch: Any) -> torch.Tensor:
        """Logits of a batch (B, S, S, 3) of uint8 RGB pixels."""
        return self.net(torch.from_numpy(batch).permute(0, 3, 1, 2) / 255)  # type: ignore[no-any-return]


if __name__ == "__main__":
    foveate.serve.serve(Model())
