"""Initial weights, optimisers and the learning rate."""

import pytest
import torch
from torch import nn

from foveate.models.distillation.fit import learning_rate
from foveate.models.layers.config import ViTConfig
from foveate.models.vit.vit import ElasticViT
from training.optimisation import initialise, initialise_convolutions, optimisers


def test_the_learning_rate_rises_to_its_peak_and_falls_to_zero() -> None:
    rates = [learning_rate(step, 1000, 2.0) for step in range(1001)]
    assert rates[0] == pytest.approx(0.02)
    assert max(rates) == rates[99] == rates[100] == 2.0
    assert rates[:100] == sorted(rates[:100])
    assert rates[100:] == sorted(rates[100:], reverse=True)
    assert rates[-1] == pytest.approx(0)


def test_a_long_run_warms_up_for_300_steps() -> None:
    assert learning_rate(299, 100_000, 1.0) == 1.0
    assert learning_rate(298, 100_000, 1.0) < 1.0


def test_matrices_are_small_and_biases_zero() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64))
    initialise(model)
    assert isinstance(model[0], nn.Linear)
    assert float(model[0].weight.detach().std()) == pytest.approx(0.02, rel=0.1)
    assert not model[0].bias.any()
    assert isinstance(model[1], nn.LayerNorm)
    assert (model[1].weight == 1).all(), "gains stay one"


def test_convolutions_keep_the_scale_of_their_input() -> None:
    torch.manual_seed(0)
    convolution, linear = nn.Conv2d(3, 32, 3), nn.Linear(4, 4)
    before = linear.weight.detach().clone()
    initialise_convolutions(nn.Sequential(convolution, linear))
    assert float(convolution.weight.detach().std()) == pytest.approx(27**-0.5, rel=0.15)
    assert torch.equal(linear.weight, before)


def test_muon_gets_the_matrices_of_the_blocks_and_adamw_the_rest() -> None:
    model = ElasticViT(ViTConfig(image_size=32, width=24, depth=2, heads=2, classes=5))
    head = nn.Linear(24, 5)
    muon, adamw = optimisers([model, head], 1e-3)
    matrices = {id(p) for group in muon.param_groups for p in group["params"]}
    others = {id(p) for group in adamw.param_groups for p in group["params"]}
    expected = {id(p) for n, p in model.named_parameters() if n.startswith("blocks.") and p.ndim == 2}
    assert matrices == expected
    assert matrices | others == {id(p) for p in (*model.parameters(), *head.parameters())}
    assert not matrices & others
