"""The stated GFLOPs of plans against a count of the matrix products that run."""

import pkgutil
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from foveate.core.outcome import Result
from foveate.core.plan import Plan
from foveate.models import exits, reduction
from foveate.models.layers.config import ViTConfig
from foveate.models.loading.load import ImageModelLoader
from foveate.models.runners.image import TorchRunner
from foveate.models.vit.flops import flops
from foveate.models.vit.resolve import resolve
from foveate.models.vit.vit import ElasticViT, ResolvedPlan
from foveate.models.zoo.heldout import heldout

pytestmark = pytest.mark.usefixtures("one_thread")

TOLERANCE = 0.01
"""Largest relative difference of a stated cost from the counted one."""


def examples(package: object, names: Sequence[str]) -> dict[str, tuple[str | None, ...]]:
    return {name: import_module(f"{package.__name__}.{name}").EXAMPLES for name in names}  # type: ignore[attr-defined]


def modules(path: Sequence[str]) -> list[str]:
    return [module.name for module in pkgutil.iter_modules(path)]


REDUCERS = [
    name if argument is None else f"{name}:{argument}"
    for name, arguments in examples(reduction, modules(reduction.__path__)).items()
    for argument in arguments
]
EXITS = [
    f"exit:{argument}" if name == "confidence" else f"exit:{name}:{argument}"
    for name, arguments in examples(exits, modules(exits.__path__)).items()
    for argument in arguments
    if argument is not None
]
OTHERS = (
    "tome:30", "tome:12:-1", "tome:8:0.5", "mctf:24", "gtp:16", "zerotprune:0.2", "diffrate:0.8G",
    "random:0.5", "pooling:0.5", "heads:1", "heads:2", "heads:2/evit:0.5", "depth:7", "depth:8",
    "evit:0.5/depth:6", "evit:0.3/exit:0.8", "tome:16/exit:0.9", "zerotprune:0.5/depth:9", "vit-t@160/tome:8",
    "vit-t@112/diffrate:0.6", "vit-t@160/zerotprune:0.6", "vit-t@112/pooling:0.4", "vit-t@160/exit:0.9",
    "vit-xs@224", "vit-xs@224/evit:0.5",
    "vit-xs@224/mctf:20", "stitch:6", "vit-xs@224/stitch:4",
)  # fmt: skip
DENSE = (
    "heads:1", "depth:8", "dtop:0.9", "dtop:0.3@4", "dtop:0.9/depth:8", "expedit:0.7@6", "expedit:0.5@2",
    "exit:eco:0.1", "evit:0.7/exit:eco:0.1", "vit-t-seg@160/tome:8", "vit-t-seg@112/evit:0.4",
)  # fmt: skip


@cache
def runner(name: str) -> TorchRunner:
    return ImageModelLoader().load(name)


def stated_and_counted(name: str, text: str) -> tuple[float, float]:
    """GFLOPs that the result of a held-out scene states, and those of the products that ran."""
    model = runner(name)
    plan = Plan.parse(text, model.full)
    pixels = next(heldout().pixels(plan.image_size))
    batch = model.stack([pixels], plan)
    with FlopCounterMode(display=False, custom_mapping=DISTANCES) as counter:
        (result,) = model.run(batch, plan)
    assert isinstance(result, Result)
    # The counter counts a multiplication and its addition as two.
    return result.gflops, counter.get_total_flops() / 2e9


def distances(a: Sequence[int], b: Sequence[int], *_: object, **__: object) -> int:
    """Operations of all distances between rows a (B, N, D) and b (B, M, D)."""
    return 2 * a[0] * a[1] * b[1] * a[2]


DISTANCES: dict[Any, Any] = {torch.ops.aten._euclidean_dist: distances}


@pytest.mark.parametrize(
    "text", [text for text in (*REDUCERS, *EXITS, *OTHERS) if not text.startswith("dtop")]
)
def test_the_stated_cost_is_the_counted_one(text: str) -> None:
    stated, counted = stated_and_counted("vit-t", text)
    assert stated == pytest.approx(counted, rel=TOLERANCE)


@pytest.mark.parametrize("text", [*REDUCERS, *DENSE])
def test_the_stated_cost_of_a_dense_model_is_the_counted_one(text: str) -> None:
    stated, counted = stated_and_counted("vit-t-seg", text)
    assert stated == pytest.approx(counted, rel=TOLERANCE)


@pytest.mark.parametrize(
    "config",
    [
        ViTConfig(width=64, heads=2, depth=6, classes=10, image_size=96),
        ViTConfig(width=64, heads=4, depth=6, classes=10, image_size=96, distilled=True),
        ViTConfig(width=64, heads=1, depth=6, classes=10, image_size=96, registers=3, embed_prefix=False),
        ViTConfig(width=64, heads=2, depth=6, classes=10, image_size=96, pool="avg", fc_norm=True),
        ViTConfig(
            width=64,
            heads=2,
            depth=6,
            classes=10,
            image_size=96,
            mlp_ratio=8 / 3,
            gated_mlp=True,
            activation="silu",
            mlp_norm=True,
            attn_norm=True,
            rope="cat",
        ),
        ViTConfig(
            width=64, heads=2, depth=6, classes=10, image_size=96, pool="map", pool_heads=4, pool_ratio=3.0
        ),
        ViTConfig(width=64, heads=2, depth=6, classes=900, image_size=96, pool="token_avg"),
        ViTConfig(width=64, heads=2, depth=6, classes=0, projection=900, image_size=96, pre_norm=True),
        ViTConfig(
            width=64,
            heads=2,
            depth=6,
            classes=0,
            image_size=96,
            pool="map",
            pool_prefix=True,
            rope="dinov3",
            rope_half=True,
            pos_embed=False,
            registers=4,
        ),
    ],
)
@pytest.mark.parametrize("text", [text for text in REDUCERS if not text.startswith(("dtop", "iared", "ats"))])
def test_the_cost_of_other_shapes_is_the_counted_one(text: str, config: ViTConfig) -> None:
    model = ElasticViT(config).eval().requires_grad_(False)  # the counter cannot follow a leaf
    resolved: ResolvedPlan = resolve(model, Plan("x", 96, reducer=text))
    with torch.inference_mode(), FlopCounterMode(display=False, custom_mapping=DISTANCES) as counter:
        model(torch.zeros(1, 3, 96, 96), resolved)
    stated = flops(model, 96, resolved, config.depth)
    assert stated == pytest.approx(counter.get_total_flops() / 2e9, rel=TOLERANCE)


def test_attention_heads_that_are_masked_save_nothing() -> None:
    """All heads are computed, so a plan with fewer heads costs as much as full."""
    full, _ = stated_and_counted("vit-t", "full")
    assert [stated_and_counted("vit-t", f"heads:{heads}")[0] for heads in (1, 2, 3)] == [full] * 3
