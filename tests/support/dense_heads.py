"""Small models with dense heads and fixed random weights."""

import torch
from torch import Tensor

from foveate.models import reduction
from foveate.models.heads.dense import DenseHead, DenseSpec
from foveate.models.layers.config import ViTConfig
from foveate.models.layers.tokens import Tokens
from foveate.models.vit.vit import ElasticViT
from foveate.models.weights.checkpoint import Checkpoint

SMALL = ViTConfig(image_size=64, patch_size=16, width=32, depth=4, heads=2, classes=4)
SPEC = DenseSpec(5, width=8, fine=8)


def dense_head(config: ViTConfig, classes: int = 2) -> DenseHead:
    """A head with random weights that do not depend on the global random state."""
    with torch.random.fork_rng():
        torch.manual_seed(11)
        return DenseHead(config, DenseSpec(classes, width=8, fine=8)).eval()


def dense_model(config: ViTConfig) -> ElasticViT:
    """A model with a dense head whose patches get different classes."""
    model, generator = ElasticViT(config, dense=SPEC).eval(), torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            gain = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(1 + 0.1 * noise if gain else 0.2 * noise)
    return model


def tokens_by_block(model: ElasticViT, images: Tensor, reducer: str) -> list[Tokens]:
    """The embedded tokens, then the tokens after each block under this reducer."""
    tokens, built = [model.embed(images)], reduction.create(reducer, model)
    for index, block in enumerate(model.blocks):
        tokens.append(block(tokens[-1], built, index))
    return tokens


def dense_checkpoint() -> Checkpoint:
    """A small model that classifies pixels: a background and four classes."""
    with torch.random.fork_rng():
        torch.manual_seed(12)
        model = ElasticViT(SMALL, dense=SPEC).eval()
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                torch.nn.init.normal_(parameter, std=0.15)
    return Checkpoint("tiny-seg", SMALL, labels=("a", "b", "c", "d"), dense=SPEC, model=model)
