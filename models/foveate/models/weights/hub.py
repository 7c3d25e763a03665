"""Load models by name: the zoo's own, local safetensors files, timm's, or random weights to measure with."""

from dataclasses import replace
from importlib.resources import as_file
from importlib.resources.abc import Traversable
from pathlib import Path

import torch
from torch import Tensor, nn

from foveate.core.errors import SetupError
from foveate.models import zoo
from foveate.models.layers.config import ViTConfig
from foveate.models.vit.vit import ElasticViT
from foveate.models.weights import timm_models
from foveate.models.weights.checkpoint import Checkpoint, attach, read, resize, save, tensors
from foveate.models.zoo import Card

__all__ = ["Checkpoint", "load", "save"]

_WELL_KNOWN = {
    "vit_tiny_patch16_224": ViTConfig(width=192, heads=3),
    "vit_small_patch16_224": ViTConfig(width=384, heads=6),
    "vit_base_patch16_224": ViTConfig(width=768, heads=12),
    "deit_small_patch16_224": ViTConfig(width=384, heads=6),
}
"""Shapes that `random:` makes without timm."""

CLIPS = "-clip"
"""After the name of a model that names pixels: the same model, for clips."""
_OTHER_FORMATS = (".pt", ".pth", ".bin", ".ckpt", ".npz", ".onnx")


def load(spec: str, image_size: int | None = None, folder: Traversable | None = None) -> Checkpoint:
    """The model behind a name, in this order: a card in the zoo, a .safetensors path, `random:` and a
    shape, a timm name (``vit_tiny_patch16_224``, with a tag or not, or ``hf-hub:timm/...``).

    `image_size` interpolates the position embeddings to another square input; `folder` replaces the
    shipped zoo. Raises SetupError with one sentence when the model cannot be had.
    """
    checkpoint = _find(spec, folder or zoo.shipped())
    if image_size in (None, checkpoint.config.image_size):
        return checkpoint
    return resize(checkpoint, image_size)


def _find(spec: str, folder: Traversable) -> Checkpoint:
    if spec in zoo.names(folder):
        card = zoo.card(spec, folder)
        with as_file(folder / f"{spec}.safetensors") as path:
            return _on_trunk(card, path, folder) if card.trunk else read(path, card)
    of_clips = spec.removesuffix(CLIPS)
    if spec.endswith(CLIPS) and of_clips in zoo.names(folder) and zoo.card(of_clips, folder).dense:
        return replace(_find(of_clips, folder), name=spec)
    if spec.endswith(".safetensors"):
        return read(Path(spec))
    if spec.endswith(_OTHER_FORMATS):
        raise SetupError(f"{spec} cannot be loaded: weights come as .safetensors, which runs no code")
    if spec.startswith("random:"):
        return _random(spec.removeprefix("random:"))
    return timm_models.load(spec, zoo.names(folder))


def _on_trunk(card: Card, path: Path, folder: Traversable) -> Checkpoint:
    """A model whose file holds a head, and whose trunk is another shipped model's."""
    trunk = _find(card.trunk, folder).model.state_dict()
    state = {name: value for name, value in trunk.items() if not name.startswith("exit_heads.")}
    return attach(replace(card, trunk=""), state | tensors(path), path.name)


def _random(name: str) -> Checkpoint:
    """Weights that mean nothing and are the same every time, for measuring speed."""
    card = Card(name, _WELL_KNOWN[name]) if name in _WELL_KNOWN else timm_models.card(name)
    with torch.device("meta"):
        shapes = ElasticViT(card.config)
    generator = torch.Generator().manual_seed(0)
    state = {n: _initial(n, p.shape, generator) for n, p in shapes.named_parameters()}
    described = Card(name=card.name, config=card.config, labels=card.labels, description="random weights")
    return attach(described, state, name)


def _initial(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Weights as a ViT is started: normals of 0.02, gains of one, biases of zero."""
    if len(shape) == 1:
        return torch.zeros(shape) if name.endswith("bias") else torch.ones(shape)
    return nn.init.normal_(torch.empty(shape), std=0.02, generator=generator)
