"""Random trunks with random exit heads, from unconfident to confident ones."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from foveate.models.heads.gates import Gate
from foveate.models.layers.config import ViTConfig
from foveate.models.layers.tokens import Tokens
from foveate.models.vit.vit import ElasticViT
from tests.support.dense_heads import dense_head

CONFIG = ViTConfig(image_size=64, width=24, depth=8, heads=2, classes=5)
HEADS = (2, 3, 4, 5, 7)
"""Blocks before each exit head."""


class RandomExitHead(nn.Module):
    """Random logits from one patch. Images differ more in a patch than in their class token.

    The larger the weight, the more confident the head. Its bias is the same for all images.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, tokens: Tokens) -> Tensor:
        return tokens.grid()[:, 0] @ self.weight + self.bias


def random_model(gain: float, bias: Callable[[int], Tensor], seed: int = 0) -> ElasticViT:
    """A random trunk with similar random exit heads. `bias` gives the bias of the n-th head."""
    model, generator = ElasticViT(CONFIG).eval(), torch.Generator().manual_seed(7)
    for after in ("2", "5"):
        model.gates[after] = Gate(CONFIG.width)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        sign = parameter.ndim == 1 and name.endswith("weight")
        parameter.copy_(1 + 0.1 * noise if sign else 0.2 * noise)
    generator.manual_seed(seed)
    shared, *own = torch.randn(1 + len(HEADS), CONFIG.width, CONFIG.classes, generator=generator)
    for number, weight in enumerate(own):
        model.exit_heads[str(HEADS[number])] = RandomExitHead(gain * (shared + 0.5 * weight), bias(number))
    model.dense = dense_head(CONFIG)
    return model


def no_bias(number: int) -> Tensor:
    return torch.zeros(CONFIG.classes)


def third_class(number: int) -> Tensor:
    return 200 * one_class(2)


def unconfident() -> ElasticViT:
    """No head is confident, and no two consecutive heads predict the same class."""
    return random_model(0, lambda number: 0.01 * one_class(number))


def confident() -> ElasticViT:
    """Every head is confident of the same class."""
    return random_model(0, third_class)


def one_class(index: int) -> Tensor:
    return torch.eye(CONFIG.classes)[index % CONFIG.classes]


def numbered(number: int) -> ElasticViT:
    """The higher the number, the more confident the heads."""
    return random_model(0.02 * 1.08**number, no_bias, seed=number)
