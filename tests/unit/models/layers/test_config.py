"""Multiply-adds against published figures and against a count of the trunk's operations."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from foveate.models import reduction
from foveate.models.layers.config import ViTConfig, gmacs
from foveate.models.layers.reducer import UntrainedContext
from foveate.models.vit.vit import ElasticViT, ResolvedPlan

TINY = ViTConfig(width=192, heads=3)
SMALL = ViTConfig(width=384, heads=6)
BASE = ViTConfig(width=768, heads=12)
DISTILLED = ViTConfig(width=192, heads=3, distilled=True)
REGISTERS = ViTConfig(width=384, heads=6, patch_size=14, registers=4, embed_prefix=False, classes=0)


pytestmark = pytest.mark.usefixtures("one_thread")


def cost(config: ViTConfig, spec: str = "none", image_size: int = 224) -> float:
    tokens = config.patches(image_size) + config.prefix
    reducer = reduction.create(spec, UntrainedContext(config))
    return gmacs(config, image_size, reducer.after(tokens, config.prefix, config.depth), reducer.point)


@pytest.mark.parametrize(
    ("config", "spec", "published"),
    [
        (TINY, "none", 1.26),
        (SMALL, "none", 4.6),
        (BASE, "none", 17.6),
        # EViT, table 1: DeiT-S by keep rate.
        (SMALL, "evit:0.9", 4.0),
        (SMALL, "evit:0.8", 3.5),
        (SMALL, "evit:0.7", 3.0),
        (SMALL, "evit:0.6", 2.6),
        (SMALL, "evit:0.5", 2.3),
    ],
)
def test_published_figures(config: ViTConfig, spec: str, published: float) -> None:
    assert cost(config, spec) == pytest.approx(published, rel=0.02)


@pytest.mark.parametrize("spec", ["none", "evit:0.7", "evit:0.5", "evit:0.3"])
@pytest.mark.parametrize("config", [TINY, SMALL, DISTILLED, REGISTERS])
def test_costs_match_a_count_of_the_operations(config: ViTConfig, spec: str) -> None:
    model = ElasticViT(config).eval()
    resolved = ResolvedPlan(reduction.create(spec, UntrainedContext(config)), config.depth)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, 224, 224), resolved)
    # The counter counts a multiplication and its addition as two.
    assert cost(config, spec) == pytest.approx(counter.get_total_flops() / 2e9, rel=0.02)


def test_a_depth_cap_and_a_smaller_image_cost_less() -> None:
    full = cost(SMALL)
    half = gmacs(SMALL, 224, (197,) * 6)
    assert half == pytest.approx(full / 2, rel=0.02)
    assert cost(SMALL, image_size=112) == pytest.approx(full * 50 / 197, rel=0.1)


def test_prefix_and_patches() -> None:
    assert TINY.patches(224) == 196
    assert (TINY.prefix, DISTILLED.prefix, REGISTERS.prefix) == (1, 2, 5)
    assert ViTConfig(class_token=False, pool="avg").prefix == 0
