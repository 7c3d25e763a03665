"""A small random ViT for tests of the benches with other servers."""

from pathlib import Path

import torch

from foveate.models.layers.config import ViTConfig
from foveate.models.vit.vit import ElasticViT
from foveate.models.weights import hub
from foveate.models.weights.checkpoint import attach
from foveate.models.weights.hub import Checkpoint
from foveate.models.zoo import CheckpointCard
from loadtests.peers.config import PeerConfig

TINY = ViTConfig(image_size=32, patch_size=16, width=12, depth=2, heads=2, classes=5)


def tiny(config: ViTConfig) -> Checkpoint:
    """Random weights, large enough that every parameter affects the output."""
    torch.manual_seed(0)
    state = {n: 0.5 * torch.randn(p.shape) for n, p in ElasticViT(config).named_parameters()}
    labels = tuple(f"label {i}" for i in range(config.classes))
    return attach(CheckpointCard("tiny", config, labels), state, "tiny")


def tiny_config(folder: Path) -> PeerConfig:
    """A configuration with a tiny model in a file, a deadline of 200 ms and 20 images per second."""
    path = folder / "tiny.safetensors"
    hub.save(path, tiny(TINY))
    return PeerConfig(str(path), "fp32", 0, 200.0, 20.0)
