"""An own model behind the engine's protocol, and in a real engine."""

import asyncio
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from foveate.core.errors import BadPlan, FoveateError, RunFailed, SetupError
from foveate.core.outcome import Result
from foveate.core.plan import Plan
from foveate.core.profile import Measurement, MeasurementEnvironment, Profile, ProfilingSet, mark_rungs
from foveate.engine.engine import Engine
from foveate.engine.runner import HasThreads, Runner
from foveate.models.own.runner import OwnRunner
from foveate.models.runners.base import ModelRunner
from tests.support.own_models import Brightness, FirstPixels, TwoNetworks, plain_image

pytestmark = pytest.mark.anyio


class RustPanic(BaseException):
    """As libraries in Rust raise it: no Exception."""


def raise_panic() -> Any:
    raise RustPanic


def own(predict: Any, **members: Any) -> Any:
    """A model with this function and these members."""
    return type("Mine", (), {"predict": lambda self, batch: predict(batch), **members})()


def test_it_is_a_runner_for_the_engine_and_for_profiling() -> None:
    engine_side: Runner = OwnRunner(Brightness())
    loading_side: ModelRunner = OwnRunner(Brightness())
    assert isinstance(engine_side, HasThreads)
    assert loading_side.device.type == "cpu"


def test_the_card() -> None:
    runner = OwnRunner(Brightness())
    card = runner.card
    assert (card.name, card.labels, card.full) == ("Brightness", ("dark", "bright"), Plan("Brightness", 64))
    assert [(rung.plan.image_size, rung.quality) for rung in card.ladder] == [(32, None), (64, 1.0)]
    assert card.weights == ""  # without a version, answers are not cached
    assert OwnRunner(FirstPixels()).card.weights


def test_more_classes_than_can_be_named_are_refused() -> None:
    with pytest.raises(SetupError, match=r"returns 5000000 scores for an image, and at most 1000000 classes"):
        OwnRunner(own(lambda batch: np.zeros((len(batch), 5_000_000), np.float32), sizes=(16,)))


def test_the_digest_depends_on_the_version() -> None:
    one, two = (own(lambda b: [[1.0]] * len(b), version=version) for version in ("1", "2"))
    assert OwnRunner(one).digest != OwnRunner(two).digest


def test_images_are_scaled_to_the_plan() -> None:
    runner = OwnRunner(Brightness())
    for side in (32, 64):
        plan = Plan("Brightness", side)
        (result,) = runner.run(runner.stack([plain_image(255, 64)], plan), plan)
        assert isinstance(result, Result)
        assert result.scores.tolist() == pytest.approx([2 / 3, 1 / 3])
        assert runner.model.batches[-1].shape == (1, side, side, 3)


def test_a_batch_that_was_stacked_for_another_plan_is_stacked_again() -> None:
    runner = OwnRunner(Brightness())
    runner.run(runner.blank_batch(2), Plan("Brightness", 32))
    assert runner.model.batches[-1].shape == (2, 32, 32, 3)


def test_variants_and_sizes_are_passed_on() -> None:
    runner = OwnRunner(TwoNetworks())
    assert runner.full == Plan("large", 64)
    assert [str(plan) for plan in runner.candidates()] == [
        "large@64/fp32", "small@32/fp32", "small@64/fp32", "large@32/fp32"
    ]  # fmt: skip
    plan = Plan("small", 32)
    (result,) = runner.run(runner.stack([plain_image(255, 64)], plan), plan)
    assert runner.model.calls[-1] == ("small", 32)
    assert isinstance(result, Result)
    assert result.scores.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ("huge@64", "no variant huge"),
        ("large@48", "32, 64"),
        ("large@64/evit:0.5", "sizes and variants only"),
    ],
)
def test_other_plans_are_refused(plan: str, words: str) -> None:
    with pytest.raises(BadPlan, match=words):
        OwnRunner(TwoNetworks()).check(Plan.parse(plan))


def test_labels_are_made_up_for_scores_alone() -> None:
    assert OwnRunner(own(lambda b: np.ones((len(b), 3)))).card.labels == ("class 0", "class 1", "class 2")
    with pytest.raises(SetupError, match="must list its labels"):
        OwnRunner(own(lambda b: ["cat"] * len(b)))
    with pytest.raises(SetupError, match="returned 2 scores for an image, and its labels are 1"):
        OwnRunner(own(lambda b: np.ones((len(b), 2)), labels=["cat"]))


def test_undecoded_bytes() -> None:
    model = own(lambda batch: [[len(item), 0.0] for item in batch], input=None, labels=("a", "b"))
    runner = OwnRunner(model)
    assert runner.card.input is None
    (result,) = runner.run(runner.stack([b"four"], runner.full), runner.full)
    assert isinstance(result, Result)
    assert result.scores.tolist() == [4, 0]
    with pytest.raises(SetupError, match="must list its labels"):
        OwnRunner(own(lambda b: [], input=None))


def test_torch_runs_without_gradients() -> None:
    seen = []

    def predict(batch: Any) -> Any:
        seen.append(torch.is_grad_enabled())
        return torch.ones(len(batch), 2)

    OwnRunner(own(predict))
    assert seen == [False]
    assert torch.is_grad_enabled()


def test_parameters_of_a_torch_module_are_counted() -> None:
    module = torch.nn.Linear(2, 3)
    module.predict = lambda batch: torch.ones(len(batch), 2)  # type: ignore[assignment]
    assert OwnRunner(module).card.parameters == 9


def profile(plans: dict[str, tuple[float, float]]) -> Profile:
    """A profile of `TwoNetworks`. plans: quality and seconds, by plan."""
    measured = [
        Measurement(plan, quality, None, 0.0, 1, {1: s, 8: 8 * s}) for plan, (quality, s) in plans.items()
    ]
    setting = MeasurementEnvironment("cpu", 1, "fp32", "", "3", "0", "2026-01-01")
    return Profile("TwoNetworks", "w", ProfilingSet("x", 4, False), 0, setting, mark_rungs(measured))


def test_a_profile_becomes_the_ladder_by_time_alone() -> None:
    measured = profile({"full": (1.0, 0.01), "small@32": (0.9, 0.001), "large@32": (0.8, 0.002)})
    assert Profile.read(measured.text(), "x") == measured  # GFLOPs of 0, which are not known
    runner = OwnRunner(TwoNetworks())
    runner.use_profile(measured)
    assert [(str(rung.plan), rung.quality) for rung in runner.card.ladder] == [
        ("small@32/fp32", 0.9), ("large@64/fp32", 1.0)
    ]  # fmt: skip


async def test_one_failed_image_never_fails_its_batch() -> None:
    """In a real engine: one batch whose `preprocess` fails for one image, and `predict` for others."""
    model = FirstPixels()
    async with Engine(OwnRunner(model)) as engine:
        reds = [2, 13, 200, 201, 3, 4]
        outcomes = await asyncio.gather(
            *(engine.submit(plain_image(red), deadline_s=60) for red in reds), return_exceptions=True
        )
    kinds = [type(outcome).__name__ for outcome in outcomes]
    assert kinds == ["Outcome", "RunFailed", "RunFailed", "RunFailed", "Outcome", "Outcome"]
    causes = [repr(outcome.__cause__) for outcome in outcomes if isinstance(outcome, RunFailed)]
    assert causes == [
        "ValueError('thirteen')",
        "ValueError('200 fails')",
        "ArithmeticError('201 is too much')",
    ]


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        (lambda b: np.ones((len(b), 5)), "5 scores in place of 2"),
        (lambda b: np.full((len(b), 2), np.nan), "not finite"),
        (lambda b: np.ones((len(b) + 1, 2)), "Mine.predict must return"),
        (lambda b: sys.exit(3), "predict of the model raised SystemExit"),
        (lambda b: raise_panic(), "raised RustPanic"),
        (lambda b: None, "not a NoneType"),
    ],
)
async def test_wrong_outputs_are_one_sentence_for_each_request(outputs: Any, words: str) -> None:
    calls = []

    def predict(batch: Any) -> Any:
        calls.append(len(batch))
        return [[0.5, 0.5]] if len(calls) == 1 else outputs(batch)  # the first call is the probe

    async with Engine(OwnRunner(own(predict, labels=("a", "b")))) as engine:
        pixels = plain_image(1, 224)
        answers = await asyncio.gather(
            *(engine.submit(pixels, deadline_s=60) for _ in range(3)), return_exceptions=True
        )
    for answer in answers:
        assert isinstance(answer, FoveateError)
        assert words in answer.detail
        assert "\n" not in answer.detail


async def test_the_users_own_foveate_errors_reach_the_client() -> None:
    from foveate.core.errors import BrokenMedia

    def predict(batch: Any) -> Any:
        return [BrokenMedia("there is no face") if pixels[0, 0, 0] == 7 else [1.0] for pixels in batch]

    async with Engine(OwnRunner(own(predict))) as engine:
        with pytest.raises(BrokenMedia, match="there is no face"):
            await engine.submit(plain_image(7, 224))


def test_a_model_without_torch_needs_no_torch() -> None:
    program = (
        "import sys\n"
        "import foveate.serve\n"
        "from foveate.core.settings import Settings\n"
        "from foveate.models.loading.own_models import load_object\n"
        "from tests.support.own_models import Brightness\n"
        "runner = load_object(Brightness(), Settings(threads=1))\n"
        "assert list(runner.times) == [1] and runner.times[1][runner.full], runner.times\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
