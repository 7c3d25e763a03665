"""The gate that predicts the useful depth of an image from its first blocks (ECO-M2F)."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from foveate.core.errors import BadPlan
from foveate.core.outcome import Result
from foveate.core.plan import Plan
from foveate.models.heads.dense import DenseSpec
from foveate.models.layers.config import ViTConfig
from foveate.models.runners.dense import dense_of, encode
from foveate.models.runners.image import TorchRunner
from foveate.models.vit.vit import ElasticViT
from foveate.models.weights.checkpoint import Checkpoint
from tests.support.dense_heads import dense_checkpoint


def gated() -> Checkpoint:
    """A model with an untrained gate whose output differs between images."""
    spec = DenseSpec(5, width=8, fine=8, gate=6)
    config = ViTConfig(image_size=64, patch_size=16, width=32, depth=8, heads=2, classes=4)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = ElasticViT(config, dense=spec).eval()
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                torch.nn.init.normal_(parameter, std=1.0 if "gate" in name else 0.2)
    return Checkpoint("tiny-gated", config, labels=("a", "b", "c", "d"), dense=spec, model=model)


@torch.inference_mode()
def indifferent_gate(images: list[np.ndarray]) -> TorchRunner:
    """A runner whose gate predicts the same quality for all depths, on average over these images."""
    runner = TorchRunner(gated())
    model = runner.models["tiny-gated"]
    gate = dense_of(model).gate
    assert gate is not None
    pixels = runner.sized(torch.from_numpy(np.stack(images)), 64)
    features = encode(model, pixels, runner.steps(replace(runner.full, depth=gate.after))).patches
    gate.layers[-1].bias -= gate(features).mean(0)
    return runner


@pytest.mark.parametrize("text", ["exit:eco:0", "evit:0.5/exit:eco:0", "tome:2/exit:eco:0"])
def test_the_gate_runs_each_image_to_its_own_depth(text: str) -> None:
    rng = np.random.default_rng(4)
    images = [rng.integers(0, 256, (64, 64, 3), np.uint8) // (1 + n) for n in range(12)]
    runner = indifferent_gate(images)
    plan = Plan.parse(text, runner.full)
    together = runner.run(runner.stack(images, plan), plan)
    depths = set()
    for image, result in zip(images, together, strict=True):
        assert isinstance(result, Result) and result.maps is not None
        depths.add(result.exit_layer)
        # The result is that of a plan with this fixed depth.
        fixed = replace(plan, exit=None, depth=result.exit_layer)
        (alone,) = runner.run(runner.stack([image], fixed), fixed)
        assert isinstance(alone, Result) and alone.maps is not None
        assert alone.maps.classes == result.maps.classes
        np.testing.assert_allclose(alone.maps.scores, result.maps.scores, atol=2e-2)
        assert alone.gflops == pytest.approx(result.gflops)
    assert len(depths) > 1 and depths <= {2, 4, 5, 6, 8}


def test_a_higher_cost_lowers_the_depth_and_a_depth_cap_holds() -> None:
    rng = np.random.default_rng(5)
    images = [rng.integers(0, 256, (64, 64, 3), np.uint8) // (1 + n) for n in range(8)]
    runner = indifferent_gate(images)

    def mean_depth(text: str) -> float:
        plan = Plan.parse(text, runner.full)
        results = runner.run(runner.stack(images, plan), plan)
        return float(np.mean([r.exit_layer for r in results if isinstance(r, Result)]))

    depths_by_cost = [mean_depth(f"exit:eco:{cost}") for cost in ("0", "0.5", "1")]
    assert depths_by_cost == sorted(depths_by_cost, reverse=True) and len(set(depths_by_cost)) > 1
    assert 2 < mean_depth("depth:4/exit:eco:0") < 4
    assert mean_depth("depth:1/exit:eco:0") == 1


def test_a_missing_gate_or_a_wrong_argument_is_refused() -> None:
    runner = TorchRunner(gated())
    for text in ("exit:0.9", "exit:eco", "exit:eco:2", "dtop:0.9/exit:eco:0.1"):
        with pytest.raises(BadPlan):
            runner.check(Plan.parse(text, runner.full))
    plain = TorchRunner(dense_checkpoint())
    with pytest.raises(BadPlan, match="no gate"):
        plain.check(Plan.parse("exit:eco:0.1", plain.full))
