"""The runner of opaque networks: plans, families, content cascades and what it refuses."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from foveate.core.errors import BadPlan, RunFailed, SetupError
from foveate.core.outcome import Result
from foveate.core.plan import Plan
from foveate.models.opaque.checkpoint import OpaqueFamily
from foveate.models.opaque.runner import OpaqueRunner
from tests.support.opaque_models import ColourSums, checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")


def image(side: int, red: int, green: int, blue: int) -> np.ndarray[Any, Any]:
    return np.full((side, side, 3), (red, green, blue), np.uint8)


def scores(runner: OpaqueRunner, plan: Plan, *images: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    results = runner.run(runner.stack(images, plan), plan)
    assert all(isinstance(result, Result) for result in results)
    return [result.scores for result in results if isinstance(result, Result)]


def test_answers_are_the_networks_softmax() -> None:
    runner = OpaqueRunner(checkpoint(gain=1.0))
    pixels = image(64, 255, 128, 0)
    (answer,) = scores(runner, runner.full, pixels)
    normalised = torch.tensor([[1.0, 128 / 255 * 2 - 1, -1.0]])
    np.testing.assert_allclose(answer, normalised.softmax(-1)[0].numpy(), atol=1e-6)


def test_each_label_has_a_probability_of_its_own() -> None:
    runner = OpaqueRunner(checkpoint(gain=1.0, multi_label=True))
    (answer,) = scores(runner, runner.full, image(64, 255, 255, 0))
    np.testing.assert_allclose(answer, torch.tensor([1.0, 1.0, -1.0]).sigmoid().numpy(), atol=1e-6)


def test_embeddings_are_the_networks_output() -> None:
    runner = OpaqueRunner(checkpoint(gain=1.0, labels=()))
    assert runner.card.task == "embed" and runner.card.labels == ()
    (answer,) = scores(runner, runner.full, image(64, 255, 0, 0))
    np.testing.assert_allclose(answer, [1.0, -1.0, -1.0], atol=1e-6)


def test_plans_are_the_sizes_of_all_members() -> None:
    family = OpaqueFamily("both", (checkpoint("large", 96), checkpoint("small", 64)))
    runner = OpaqueRunner(family)
    assert [str(plan) for plan in runner.candidates()] == [
        "large@96/fp32", "large@64/fp32", "small@64/fp32", "small@32/fp32",
    ]  # fmt: skip
    assert runner.card.name == "both" and runner.full == Plan("large", 96)
    assert runner.card.variants == {"large", "small"}
    costs = [rung.gflops for rung in runner.card.ladder]
    assert costs == sorted(costs) and runner.card.ladder[-1].plan == runner.full
    # Only full has a quality before a profile is measured, so the scheduler serves full alone.
    assert [rung.quality for rung in runner.card.ladder] == [None, None, None, 1.0]


def test_each_member_has_its_own_normalisation() -> None:
    other = checkpoint("small", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), gain=1.0)
    runner = OpaqueRunner(OpaqueFamily("both", (checkpoint("large", gain=1.0), other)))
    (answer,) = scores(runner, Plan("small", 64), image(64, 255, 0, 0))
    np.testing.assert_allclose(answer, torch.tensor([1.0, 0.0, 0.0]).softmax(-1).numpy(), atol=1e-6)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("other@64", "other is not a variant"),
        ("large@64/bf16", "loaded in fp32"),
        ("large@64/evit:0.5", "not an elastic trunk"),
        ("large@64/depth:2", "not an elastic trunk"),
        ("large@64/frames:2", "not an elastic trunk"),
        ("large@48", "the image sizes of large are 32, 64, not 48"),
        ("large@64/content:0.9", "no content rungs"),
    ],
)
def test_plans_that_cannot_run(text: str, problem: str) -> None:
    runner = OpaqueRunner(checkpoint())
    with pytest.raises(BadPlan, match=problem):
        runner.check(Plan.parse(text, runner.full))


def test_image_without_finite_scores_fails_alone() -> None:
    class Fragile(ColourSums):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images).log()  # NaN for dark images

    runner = OpaqueRunner(checkpoint(model=Fragile(1.0).eval()))
    bright, dark = image(64, 255, 255, 255), image(64, 0, 0, 0)
    first, second = runner.run(runner.stack([bright, dark], runner.full), runner.full)
    assert isinstance(first, Result) and isinstance(second, RunFailed)


def test_output_of_another_width_is_refused() -> None:
    with pytest.raises(SetupError, match=r"answers one image with the shape \(1, 3\), not with \(1, 2\)"):
        OpaqueRunner(checkpoint(labels=("a", "b")))


def test_digest_depends_on_weights_and_normalisation() -> None:
    plain = OpaqueRunner(checkpoint()).card.weights
    assert plain == OpaqueRunner(checkpoint()).card.weights
    others = {
        OpaqueRunner(checkpoint(gain=2.0)).card.weights,
        OpaqueRunner(checkpoint(std=(0.4, 0.5, 0.5))).card.weights,
        OpaqueRunner(checkpoint(multi_label=True)).card.weights,
    }
    assert len(others | {plain}) == 4
