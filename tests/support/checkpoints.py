"""Small checkpoints with random weights, and the text of a card, for tests of weights and cards."""

from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from foveate.core.model import InputSpec
from foveate.models import reduction
from foveate.models.heads import ExitSpec
from foveate.models.layers.config import ViTConfig
from foveate.models.vit.vit import ElasticViT, ResolvedPlan, TrunkOutput
from foveate.models.weights.checkpoint import Checkpoint, attach
from foveate.models.zoo import CheckpointCard

SMALL = ViTConfig(image_size=64, width=128, depth=2, heads=2, classes=3)
LABELS = ("cat", "dog", "newt")
CARD = """
name = "vit-x"
description = "Three animals."
licence = "Apache-2.0"
source = "models/training"
labels = ["cat", "dog", "newt"]

[geometry]
image_size = 64
width = 128
depth = 2
heads = 2
classes = 3

[input]
crop_pct = 0.9
crop_mode = "squash"
interpolation = "bilinear"
mean = [0.5, 0.4, 0.3]
std = [1, 0.2, 0.1]
"""


def weights(config: ViTConfig, seed: int = 0, exits: tuple[ExitSpec, ...] = ()) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    state = ElasticViT(config, exits).state_dict()
    return {name: torch.randn(value.shape, generator=generator) * 0.05 for name, value in state.items()}


def example(config: ViTConfig = SMALL) -> Checkpoint:
    card = CheckpointCard(
        "vit-x", config, LABELS, InputSpec(0.9), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "Animals.", "MIT"
    )
    return attach(card, weights(config), "example")


def answer(checkpoint: Checkpoint) -> Tensor:
    g = checkpoint.model.config
    image = torch.randn(1, 3, g.image_size, g.image_size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        out: TrunkOutput = checkpoint.model(
            image, ResolvedPlan(reduction.create("none", checkpoint.model), g.depth)
        )
    return out.logits


EXITS = (ExitSpec(1, "local", 3), ExitSpec(3, "global", 2))
EXIT_TABLES = """
[[exits]]
after = 1
kind = "local"
size = 3

[[exits]]
after = 3
kind = "global"
size = 2
"""


CARD_OF_FOUR_BLOCKS = CARD.replace("depth = 2", "depth = 4")


def with_exits() -> Checkpoint:
    config = replace(SMALL, depth=4)
    card, state = CheckpointCard("vit-x", config, LABELS, exits=EXITS), weights(config, exits=EXITS)
    return attach(card, state | {"exit_heads.1.temperature": torch.tensor(1.5)}, "example")


def early_answers(checkpoint: Checkpoint) -> Tensor:
    """What the exit heads answer, one after the other."""
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    reducer = reduction.create("none", checkpoint.model)
    with torch.inference_mode():
        return torch.cat(
            [checkpoint.model(images, ResolvedPlan(reducer, spec.after)).logits for spec in EXITS]
        )


def write_zoo(folder: Path) -> Path:
    """Write the model `vit-x`, a card and weights, into a folder."""
    (folder / "vit-x.toml").write_text(CARD)
    save_file(weights(SMALL), folder / "vit-x.safetensors")
    return folder
