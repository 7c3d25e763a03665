"""A small dense head whose weights are the same every time, for models under test."""

import torch

from foveate.models.heads.dense import DenseHead, DenseSpec
from foveate.models.layers.config import ViTConfig
from foveate.models.vit.vit import ElasticViT
from foveate.models.weights.checkpoint import Checkpoint

SMALL = ViTConfig(image_size=64, patch_size=16, width=32, depth=4, heads=2, classes=4)
SPEC = DenseSpec(5, width=8, fine=8)


def dense_head(config: ViTConfig, classes: int = 2) -> DenseHead:
    """Drawn apart from the global random state."""
    with torch.random.fork_rng():
        torch.manual_seed(11)
        return DenseHead(config, DenseSpec(classes, width=8, fine=8)).eval()


def dense_checkpoint() -> Checkpoint:
    """A small model that names pixels, a background and four classes."""
    with torch.random.fork_rng():
        torch.manual_seed(12)
        model = ElasticViT(SMALL, dense=SPEC).eval()
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                torch.nn.init.normal_(parameter, std=0.15)
    return Checkpoint("tiny-seg", SMALL, labels=("a", "b", "c", "d"), dense=SPEC, model=model)
