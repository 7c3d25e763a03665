"""Attention pooling: counts of merged tokens, and padding."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from foveate.models import reduction
from foveate.models.layers.attention_pool import AttentionPool
from foveate.models.layers.config import ViTConfig
from foveate.models.vit.vit import ResolvedPlan
from tests.support.references import build

CONFIG = ViTConfig(image_size=96, width=48, heads=3, depth=4, classes=5, class_token=False, pool="map")

pytestmark = pytest.mark.usefixtures("inference_on_one_thread")


def pool() -> AttentionPool:
    module, generator = AttentionPool(replace(CONFIG, pool_heads=4, pool_ratio=2.0)), torch.Generator()
    for parameter in module.parameters():
        parameter.copy_(
            0.4 * torch.randn(parameter.shape, generator=generator.manual_seed(parameter.numel()))
        )
    return module


def tokens(count: int = 5) -> Tensor:
    return torch.randn(2, count, CONFIG.width, generator=torch.Generator().manual_seed(1))


def test_a_token_that_stands_for_equal_ones_counts_as_often() -> None:
    x = tokens()
    repeated = torch.cat([x, x[:, 3:4], x[:, 3:4]], 1)
    merged = pool()(x, torch.tensor([1.0, 1, 1, 3, 1]).expand(2, -1))
    assert torch.allclose(merged, pool()(repeated, torch.ones(2, 7)), atol=1e-5)
    assert not torch.allclose(merged, pool()(x, torch.ones(2, 5)), atol=1e-3)


def test_padding_is_ignored() -> None:
    x = tokens()
    padded = pool()(x, torch.tensor([1.0, 1, 1, 0, 0]).expand(2, -1))
    assert torch.allclose(padded, pool()(x[:, :3], torch.ones(2, 3)), atol=1e-5)


@pytest.mark.parametrize("spec", ["tome:3", "mctf:2", "pooling:0.5"])
def test_merging_the_patches_of_a_flat_image_changes_nothing(spec: str) -> None:
    model = build(CONFIG)
    assert model.pos_embed is not None
    model.pos_embed.zero_()  # all patches are equal
    images = torch.full((2, 3, 96, 96), 0.5)
    full, merged = (
        model(images, ResolvedPlan(reduction.create(text, model), CONFIG.depth)) for text in ("none", spec)
    )
    assert torch.all(merged.tokens < full.tokens)
    assert torch.allclose(merged.logits, full.logits, atol=1e-4)
