"""Image classifiers of transformers as opaque checkpoints."""

import inspect
from typing import Any

from torch import Tensor, nn

from foveate.models.huggingface.fetch import Pretrained
from foveate.models.opaque.checkpoint import OpaqueCheckpoint
from foveate.models.opaque.sizes import smaller_sizes

FLEXIBLE = "interpolate_pos_encoding"
"""The argument of transformers' vision transformers that makes them take any image size."""


class ImageLogits(nn.Module):
    """Maps images (B, 3, S, S), RGB, to the model's logits (B, C)."""

    def __init__(self, model: Any, image_size: int, reverse: bool = False) -> None:
        """image_size: the model's own; reverse: the model takes channels in the order blue, green, red."""
        super().__init__()
        self.model, self.image_size, self.reverse = model, image_size, reverse
        self._flexible = FLEXIBLE in inspect.signature(model.forward).parameters

    def forward(self, images: Tensor) -> Tensor:
        """Other sizes than the model's own interpolate its position embeddings, where it has any."""
        other = self._flexible and images.shape[-1] != self.image_size
        pixels = images.flip(1) if self.reverse else images
        logits: Tensor = self.model(pixel_values=pixels, **({FLEXIBLE: True} if other else {})).logits
        return logits


def opaque(pretrained: Pretrained) -> OpaqueCheckpoint:
    """A classifier of images as an opaque checkpoint. The weights are shared."""
    preprocessing = pretrained.preprocessing
    network = ImageLogits(pretrained.model, preprocessing.side, preprocessing.reversed).eval()
    return OpaqueCheckpoint(
        name=pretrained.name,
        model=network,
        labels=pretrained.labels,
        image_size=preprocessing.side,
        input=preprocessing.input,
        mean=preprocessing.mean,
        std=preprocessing.std,
        sizes=smaller_sizes(network, preprocessing.side),
        multi_label=pretrained.multi_label,
        description=pretrained.description,
        licence=pretrained.licence,
        source=pretrained.source,
    )
