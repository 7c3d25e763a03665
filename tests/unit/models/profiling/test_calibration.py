"""Calibration of exit heads: the error, the fitted temperature, and the heads afterwards."""

from typing import cast

import pytest
import torch
import torch.nn.functional as F

from foveate.models import reduction
from foveate.models.heads import ExitSpec
from foveate.models.heads.exits import ExitHead
from foveate.models.layers.config import ViTConfig
from foveate.models.profiling.calibration import (
    calibrate,
    exit_logits,
    expected_calibration_error,
    fit_temperature,
)
from foveate.models.vit.vit import ElasticViT

pytestmark = pytest.mark.usefixtures("inference_on_one_thread")


def model_with_heads() -> ElasticViT:
    """A random model with exit heads after 2, 3 and 5 of its 6 blocks."""
    specs = (ExitSpec(2, "local", 3), ExitSpec(3, "local", 5), ExitSpec(5, "global", 2))
    config = ViTConfig(image_size=96, width=24, depth=6, heads=3, classes=7)
    model, generator = ElasticViT(config, specs).eval(), torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        gain = parameter.ndim == 1 and name.endswith("weight")
        parameter.copy_(1 + 0.1 * noise if gain else 0.2 * noise)
    return model


def test_the_expected_calibration_error_of_known_cases() -> None:
    sure = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    assert expected_calibration_error(sure, torch.tensor([0, 0, 0, 0])) == 0
    assert expected_calibration_error(sure, torch.tensor([1, 1, 0, 0])) == pytest.approx(0.5)
    # Two bins: 0.6 is right half of the time, 0.9 always. (2 * 0.1 + 2 * 0.1) / 4.
    mixed = torch.tensor([[0.6, 0.4], [0.6, 0.4], [0.1, 0.9], [0.1, 0.9]])
    assert expected_calibration_error(mixed, torch.tensor([0, 1, 1, 1])) == pytest.approx(0.1, abs=1e-6)
    # In one bin, overconfidence and underconfidence cancel out.
    assert expected_calibration_error(mixed, torch.tensor([0, 1, 1, 1]), bins=1) == pytest.approx(0, abs=1e-6)
    even = torch.full((10, 4), 0.25)
    assert expected_calibration_error(even, torch.zeros(10, dtype=torch.int64)) == pytest.approx(0.75)


def test_the_fit_recovers_a_known_temperature() -> None:
    generator = torch.Generator().manual_seed(0)
    calibrated = 2 * torch.randn(20_000, 6, generator=generator)
    labels = torch.multinomial(calibrated.softmax(1), 1, generator=generator).squeeze(1)
    for temperature in (0.4, 1.0, 3.0):
        logits = calibrated * temperature
        fitted = fit_temperature(logits, labels)
        assert fitted == pytest.approx(temperature, rel=0.03)
        best = F.cross_entropy(logits / fitted, labels)
        assert all(best < F.cross_entropy(logits / (fitted * off), labels) for off in (0.9, 1.1))
        assert expected_calibration_error((logits / fitted).softmax(1), labels) < 0.02


@pytest.mark.parametrize("right", [True, False])
def test_a_head_that_is_always_right_or_wrong_gets_a_bound_as_temperature(right: bool) -> None:
    logits = torch.eye(4).repeat(5, 1)
    labels = logits.argmax(1) if right else (logits.argmax(1) + 1) % 4
    assert fit_temperature(logits, labels) == pytest.approx(0.05 if right else 20, rel=1e-6)


def test_calibration_sets_the_temperature_of_each_head_and_is_idempotent() -> None:
    model = model_with_heads()
    images = torch.randn(64, 3, 96, 96, generator=torch.Generator().manual_seed(3))
    labels = torch.randint(7, (64,), generator=torch.Generator().manual_seed(4))
    before = exit_logits(model, images, reduction.create("none", model))
    first = calibrate(model, before, labels)
    assert list(first) == [2, 3, 5]
    after_logits = exit_logits(model, images, reduction.create("none", model))
    for after, head in model.exit_heads.items():
        report = first[int(after)]
        assert float(cast("ExitHead", head).temperature) == pytest.approx(report.temperature)
        assert torch.allclose(after_logits[int(after)], before[int(after)] / report.temperature, atol=1e-5)
        assert report.ece_before == pytest.approx(
            expected_calibration_error(before[int(after)].softmax(1), labels)
        )
        assert report.ece_after == pytest.approx(
            expected_calibration_error(after_logits[int(after)].softmax(1), labels), abs=1e-3
        )
    assert torch.equal(after_logits[6], before[6])
    second = calibrate(model, after_logits, labels)
    temperatures = {after: report.temperature for after, report in first.items()}
    assert {after: report.temperature for after, report in second.items()} == pytest.approx(
        temperatures, rel=1e-3
    )
