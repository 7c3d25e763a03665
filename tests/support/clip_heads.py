"""Small models that classify video clips, with random weights."""

import torch

from foveate.models.heads.clip import ClipSpec
from foveate.models.layers.config import ViTConfig
from foveate.models.vit.vit import ElasticViT
from foveate.models.weights.checkpoint import Checkpoint

SMALL = ViTConfig(image_size=64, patch_size=16, width=32, depth=4, heads=2, classes=5)
SPEC = ClipSpec(3, frames=8, image_size=64, width=16, depth=2, heads=2, reads=4, grid=3, glance_size=32,
                glance_depth=2)  # fmt: skip


def clip_checkpoint(seed: int = 0) -> Checkpoint:
    """A model with weights large enough that different clips get different scores."""
    torch.manual_seed(seed)
    model = ElasticViT(SMALL, clip=SPEC).eval()
    for name, parameter in model.named_parameters():
        scale = 0.5 if "clip.classes" in name else 0.15
        torch.nn.init.normal_(parameter, std=scale)
        if "norm" in name and name.endswith("weight"):
            torch.nn.init.ones_(parameter)
    return Checkpoint("tiny-clip", SMALL, labels=("a", "b", "c"), clip=SPEC, model=model)
