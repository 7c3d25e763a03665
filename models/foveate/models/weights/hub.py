"""Models by name: shipped in the zoo, in local safetensors files, from timm, or with random weights."""

from dataclasses import replace
from importlib.resources import as_file
from importlib.resources.abc import Traversable
from pathlib import Path

import torch
from torch import Tensor, nn

from foveate.core.checkpoint_options import NOTHING_STATED, CheckpointOptions
from foveate.core.default_models import PHOTO_NAMES
from foveate.core.errors import SetupError
from foveate.models import zoo
from foveate.models.layers.config import ViTConfig
from foveate.models.vit.vit import ElasticViT
from foveate.models.weights import timm_models, transformers_hub
from foveate.models.weights.checkpoint import Checkpoint, attach, read, resize, save, tensors, variant
from foveate.models.weights.local_files import (
    OTHER_FORMATS,
    check_no_options,
    is_local,
    other_format,
    weights_path,
    without_prefix,
)
from foveate.models.zoo import CheckpointCard

__all__ = ["Checkpoint", "load", "save"]

_WELL_KNOWN = {
    "vit_tiny_patch16_224": ViTConfig(width=192, heads=3),
    "vit_small_patch16_224": ViTConfig(width=384, heads=6),
    "vit_base_patch16_224": ViTConfig(width=768, heads=12),
    "deit_small_patch16_224": ViTConfig(width=384, heads=6),
}
"""Configurations for `random:` that need no timm."""

RANDOM = "random:"
"""Before the name of an architecture: random weights, the same every time, for measurements of speed."""
CLIPS = "-clip"
"""The suffix that makes the name of a segmentation model the name of the same model for video clips."""


def load(
    name: str,
    image_size: int | None = None,
    folder: Traversable | None = None,
    options: CheckpointOptions = NOTHING_STATED,
) -> Checkpoint:
    """The model of a name. These are tried in order: the path of a .safetensors file or of its folder, the
    ``org/name`` of a vision transformer of transformers on the hub, a card in the zoo, `random:` and an
    architecture, a timm name (``vit_tiny_patch16_224``, with a tag or without, or ``hf-hub:timm/...``).

    image_size: in pixels, the position embeddings are interpolated to it; folder: used in place of the zoo;
    options: what is stated about a file. Raises SetupError with one sentence when there is no such model,
    and for options of a model that is no file.
    """
    name = without_prefix(name)
    if is_local(name):
        checkpoint = read(weights_path(name), options=options)
    elif transformers_hub.is_trunk_repository(name):
        checkpoint = _of_repository(name, options)
    else:
        check_no_options(name, options)
        checkpoint = _find(name, folder or zoo.shipped())
    return resize(checkpoint, image_size or checkpoint.config.image_size)


def _of_repository(name: str, options: CheckpointOptions) -> Checkpoint:
    """A checkpoint of transformers on the hub."""
    path = transformers_hub.fetch_weights(name)
    return replace(
        read(path, options=options),
        name=variant(name.rpartition("/")[2])[: zoo.MAX_NAME],
        licence=transformers_hub.licence_of(path.parent),
        source=transformers_hub.source_of(name),
    )


def _find(name: str, folder: Traversable) -> Checkpoint:
    if name in zoo.names(folder):
        card = zoo.card(name, folder)
        with as_file(folder / f"{name}.safetensors") as path:
            return _with_trunk(card, path, folder) if card.trunk else read(path, card)
    if name in zoo.chat_names(folder):
        raise SetupError(
            f"{name} answers questions about pictures, so it has no classes: serve it without siblings, or "
            "run `foveate ask`"
        )
    without_suffix = name.removesuffix(CLIPS)
    if (
        name.endswith(CLIPS)
        and without_suffix in zoo.names(folder)
        and zoo.card(without_suffix, folder).dense
    ):
        return replace(_find(without_suffix, folder), name=name)
    if name.endswith(OTHER_FORMATS):
        raise SetupError(other_format(name))
    if name.startswith(RANDOM):
        return _random(name.removeprefix(RANDOM))
    if name.startswith(("/", "./", "../", "~")) or Path(name).is_file():
        if not Path(name).exists():
            raise SetupError(f"there is no file or folder {name}")
        raise SetupError(f"{name} is no model: name a .safetensors file, or a folder with a config.json")
    return timm_models.load(name, (*zoo.names(folder), *PHOTO_NAMES))


def _with_trunk(card: CheckpointCard, path: Path, folder: Traversable) -> Checkpoint:
    """A model whose file holds a head alone. Its trunk is another shipped model's."""
    trunk = _find(card.trunk, folder).model.state_dict()
    state = {name: value for name, value in trunk.items() if not name.startswith("exit_heads.")}
    return attach(replace(card, trunk=""), state | tensors(path), path.name)


def _random(name: str) -> Checkpoint:
    """A model with random weights, the same every time, for measurements of speed."""
    card = CheckpointCard(name, _WELL_KNOWN[name]) if name in _WELL_KNOWN else timm_models.card(name)
    with torch.device("meta"):
        shapes = ElasticViT(card.config)
    generator = torch.Generator().manual_seed(0)
    state = {n: _initial(n, p.shape, generator) for n, p in shapes.named_parameters()}
    described = CheckpointCard(
        name=card.name, config=card.config, labels=card.labels, description="random weights"
    )
    return attach(described, state, name)


def _initial(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """A ViT's usual initial values: normals with deviation 0.02, gains of one, biases of zero."""
    if len(shape) == 1:
        return torch.zeros(shape) if name.endswith("bias") else torch.ones(shape)
    return nn.init.normal_(torch.empty(shape), std=0.02, generator=generator)
