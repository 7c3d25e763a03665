"""The gate that tells how deep a picture has to go before it goes there (ECO-M2F)."""

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
    """A model whose gate was not trained, but tells pictures apart."""
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
def undecided(pictures: list[np.ndarray]) -> TorchRunner:
    """A gate to which, on the whole, all depths are worth the same."""
    runner = TorchRunner(gated())
    model = runner.models["tiny-gated"]
    gate = dense_of(model).gate
    assert gate is not None
    images = runner.preprocess(torch.from_numpy(np.stack(pictures)), 64)
    canvas = encode(model, images, runner.resolve(replace(runner.full, depth=gate.after))).patches
    gate.layers[-1].bias -= gate(canvas).mean(0)
    return runner


@pytest.mark.parametrize("text", ["exit:eco:0", "evit:0.5/exit:eco:0", "tome:2/exit:eco:0"])
def test_the_gate_takes_each_picture_as_deep_as_it_says(text: str) -> None:
    rng = np.random.default_rng(4)
    pictures = [rng.integers(0, 256, (64, 64, 3), np.uint8) // (1 + n) for n in range(12)]
    runner = undecided(pictures)
    plan = Plan.parse(text, runner.full)
    together = runner.run(runner.stack(pictures, plan), plan)
    depths = set()
    for picture, result in zip(pictures, together, strict=True):
        assert isinstance(result, Result) and result.maps is not None
        depths.add(result.exit_layer)
        # As if the plan had named that depth itself.
        named = replace(plan, exit=None, depth=result.exit_layer)
        (alone,) = runner.run(runner.stack([picture], named), named)
        assert isinstance(alone, Result) and alone.maps is not None
        assert alone.maps.classes == result.maps.classes
        np.testing.assert_allclose(alone.maps.scores, result.maps.scores, atol=2e-2)
        assert alone.gflops == pytest.approx(result.gflops)
    assert len(depths) > 1 and depths <= {2, 4, 5, 6, 8}


def test_a_dearer_block_is_used_less_and_load_caps_it() -> None:
    rng = np.random.default_rng(5)
    pictures = [rng.integers(0, 256, (64, 64, 3), np.uint8) // (1 + n) for n in range(8)]
    runner = undecided(pictures)

    def mean_depth(text: str) -> float:
        plan = Plan.parse(text, runner.full)
        results = runner.run(runner.stack(pictures, plan), plan)
        return float(np.mean([r.exit_layer for r in results if isinstance(r, Result)]))

    prices = [mean_depth(f"exit:eco:{price}") for price in ("0", "0.5", "1")]
    assert prices == sorted(prices, reverse=True) and len(set(prices)) > 1
    assert 2 < mean_depth("depth:4/exit:eco:0") < 4
    assert mean_depth("depth:1/exit:eco:0") == 1


def test_a_gate_that_is_not_there_or_not_asked_rightly() -> None:
    runner = TorchRunner(gated())
    for text in ("exit:0.9", "exit:eco", "exit:eco:2", "dtop:0.9/exit:eco:0.1"):
        with pytest.raises(BadPlan):
            runner.check(Plan.parse(text, runner.full))
    plain = TorchRunner(dense_checkpoint())
    with pytest.raises(BadPlan, match="no gate"):
        plain.check(Plan.parse("exit:eco:0.1", plain.full))
