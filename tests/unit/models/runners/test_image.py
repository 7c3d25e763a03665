"""The runner of images: plans with content rungs and stitches, their results, cost and explanations."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from foveate.core.content import ContentRungs
from foveate.core.errors import RunFailed
from foveate.core.outcome import Explanation, Result
from foveate.core.plan import Plan
from foveate.models.profiling.content_profile import learn
from foveate.models.runners.image import TorchRunner
from tests.support import measuring, routed
from tests.support.routed import ROUTER, STITCH, WHITE, decoded, is_hard

RUNGS = (ROUTER, "evit:0.6", "full")

pytestmark = pytest.mark.usefixtures("one_thread")


def content_runner(max_batch: int = 16) -> TorchRunner:
    runner = routed.runner(max_batch)
    offered = [(measuring.plan(ROUTER, 0.9, 0.1), measuring.plan("full", 1.0, 1.0))]
    runner.content = learn(runner, routed.images(60), range(60), offered, lambda *_: None)
    assert runner.content is not None
    return runner


def content(runner: TorchRunner, certainty: str = "0.9") -> Plan:
    return Plan.parse(f"content:{certainty}", runner.full)


def run(runner: TorchRunner, numbers: list[int], plan: Plan) -> list[Result]:
    media = [decoded(str(number).encode()) for number in numbers]
    results = runner.run(runner.stack(media, plan), plan)
    assert len(results) == len(numbers)
    actual = [result for result in results if isinstance(result, Result)]
    assert len(actual) == len(numbers)
    return actual


MIXED = [61, 66, 62, 63, 72, 78, 64]


def test_each_image_gets_the_result_of_its_rung() -> None:
    runner = content_runner()
    router = Plan.parse(ROUTER, runner.full)
    for number, result in zip(MIXED, run(runner, MIXED, content(runner)), strict=True):
        rung = runner.full if is_hard(number) else router
        assert result.chosen == rung
        (alone,) = run(runner, [number], rung)
        assert np.abs(result.scores - alone.scores).max() < 1e-5
        assert (result.tokens, result.exit_layer) == (alone.tokens, alone.exit_layer)


def test_cost_is_the_sum_of_the_first_and_the_chosen_rung() -> None:
    runner = content_runner()
    (router,), (full,) = (run(runner, [61], Plan.parse(text, runner.full)) for text in (ROUTER, "full"))
    for number, result in zip(MIXED, run(runner, MIXED, content(runner)), strict=True):
        expected = router.gflops + (full.gflops if is_hard(number) else 0)
        assert result.gflops == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("numbers", [[61], [66], [61, 62, 63], [66, 72, 78]])
def test_all_images_of_a_batch_can_choose_one_rung(numbers: list[int]) -> None:
    runner = content_runner()
    rung = runner.full if is_hard(numbers[0]) else Plan.parse(ROUTER, runner.full)
    assert [result.chosen for result in run(runner, numbers, content(runner))] == [rung] * len(numbers)


def test_images_of_a_batch_can_choose_three_rungs() -> None:
    """The lead of the best class is 0.98 on flat images, 0.1 on the others."""
    runner = routed.runner()
    runner.content = ContentRungs(RUNGS, ((0.0, 10.0, 0.0), (0.0, -10.0, 0.0)), (-5.0, 2.0))
    half = Plan.parse("evit:0.6", runner.full)
    results = run(runner, [61, 66], content(runner, "0.7"))
    assert [r.chosen for r in results] == [Plan.parse(ROUTER, runner.full), half]
    results = run(runner, [61, 66], content(runner, "0.98"))
    assert [r.chosen for r in results] == [Plan.parse(ROUTER, runner.full), runner.full]
    (router,) = run(runner, [66], Plan.parse(ROUTER, runner.full))
    # The rung between was never run.
    assert results[1].gflops == pytest.approx(router.gflops + run(runner, [66], runner.full)[0].gflops)


@pytest.mark.parametrize("text", ["tiny@96", "tiny@128/evit:0.3", "tiny@80/tome:2"])
def test_sizes_above_the_models_own_use_the_pixels_of_the_image(text: str) -> None:
    runner = TorchRunner(measuring.tiny())
    plan = Plan.parse(text, runner.full)
    runner.check(plan)
    generator = np.random.default_rng(3)
    media = [generator.integers(0, 256, (plan.image_size,) * 2 + (3,), np.uint8) for _ in range(5)]
    results = runner.run(runner.stack(media, plan), plan)
    assert len(results) == 5
    for medium, result in zip(media, results, strict=True):
        (alone,) = runner.run(runner.stack([medium], plan), plan)
        assert isinstance(result, Result) and isinstance(alone, Result)
        assert np.abs(result.scores - alone.scores).max() < 1e-5
    assert len({result.scores.tobytes() for result in results if isinstance(result, Result)}) == 5


def test_a_ladder_with_a_larger_plan_takes_all_media_at_its_size() -> None:
    rung = measuring.plan("tiny@80/evit:0.2", 1.0, 0.5, rung=True)
    profile = measuring.written(measuring.FULL, rung)
    runner, small = TorchRunner(measuring.tiny(), profile=profile), TorchRunner(measuring.tiny())
    assert runner.card.input_side == runner.decoded_side == 80
    assert small.card.input_side == small.decoded_side == 64
    media = [np.full((80, 80, 3), shade, np.uint8) for shade in (40, 200)]
    for plan in (runner.card.ladder[0].plan, runner.full):
        results = runner.run(runner.stack(media, plan), plan)
        assert all(isinstance(result, Result) for result in results)
    # A flat image has the same pixels at both sizes.
    flat = [np.full((64, 64, 3), shade, np.uint8) for shade in (40, 200)]
    expected = small.run(small.stack(flat, small.full), small.full)
    for result, other in zip(results, expected, strict=True):
        assert isinstance(result, Result) and isinstance(other, Result)
        assert np.abs(result.scores - other.scores).max() < 1e-5


def test_batches_of_larger_images_are_split_to_the_memory_of_a_full_batch() -> None:
    runner = TorchRunner(measuring.tiny(), max_batch=8)
    sizes: list[int] = []
    model = runner.models["tiny"]
    model.patch_embed.register_forward_hook(lambda _m, inputs, _o: sizes.append(len(inputs[0])))
    plan = Plan.parse("tiny@128", runner.full)
    media = [np.full((128, 128, 3), shade, np.uint8) for shade in range(0, 80, 10)]
    assert len(runner.run(runner.stack(media, plan), plan)) == 8
    assert sizes == [2, 2, 2, 2]
    sizes.clear()
    runner.run(runner.blank_batch(8), runner.full)
    assert sizes == [8]


def test_results_of_other_plans_have_no_chosen_rung() -> None:
    runner = content_runner()
    for text in ("full", "evit:0.6", ROUTER):
        assert {r.chosen for r in run(runner, MIXED, Plan.parse(text, runner.full))} == {None}


def test_certainty_decides_which_images_run_again() -> None:
    runner = content_runner()
    assert {r.chosen for r in run(runner, MIXED, content(runner, "1"))} == {runner.full}
    assert {r.chosen for r in run(runner, MIXED, content(runner, "0.0001"))} != {runner.full}


def test_last_rung_runs_where_the_first_one_fails() -> None:
    runner = content_runner()
    plan, router = content(runner), Plan.parse(ROUTER, runner.full)
    media = [decoded(b"61"), WHITE, decoded(b"62")]
    assert isinstance(runner.run(runner.stack(media, router), router)[1], RunFailed)
    results = runner.run(runner.stack(media, plan), plan)
    (full,) = runner.run(runner.stack([WHITE], runner.full), runner.full)
    first, white, last = results
    assert isinstance(white, Result)
    assert isinstance(full, Result)
    assert isinstance(first, Result)
    assert isinstance(last, Result)
    assert white.chosen == runner.full
    assert np.abs(white.scores - full.scores).max() < 1e-5
    assert (first.chosen, last.chosen) == (router, router)


def test_image_fails_alone_where_the_last_rung_fails_too() -> None:
    runner = content_runner()
    plan = content(runner)

    def spoil(_: object, images: tuple[torch.Tensor], out: torch.Tensor) -> torch.Tensor:
        white = (images[0] > 0.999).flatten(1).all(1)
        return out.masked_fill(white[:, None, None], torch.nan)

    runner.models["tiny"].patch_embed.register_forward_hook(spoil)
    media = [decoded(b"66"), WHITE, decoded(b"61")]
    hard, white, flat = runner.run(runner.stack(media, plan), plan)
    assert isinstance(white, RunFailed)
    assert isinstance(hard, Result)
    assert isinstance(flat, Result)
    assert (hard.chosen, flat.chosen) == (runner.full, Plan.parse(ROUTER, runner.full))


# Explanations.


def test_content_plan_explains_each_image_under_its_rung() -> None:
    runner = routed.runner()
    runner.content = ContentRungs(("evit:0.6", ROUTER, "full"), ((0.0, 0.0, 0.0),) * 2, (-9.0, -9.0))
    every = [decoded(str(number).encode()) for number in MIXED]
    assert runner.explain(every, content(runner)) == runner.explain(every, runner.full)
    runner.content = replace(runner.content, bias=(9.0, -9.0))
    explained = runner.explain(every, content(runner))
    assert explained == runner.explain(every, Plan.parse("evit:0.6", runner.full))
    assert all(explanation.stages for explanation in explained)


def test_explanations_of_a_mixed_batch_keep_their_order() -> None:
    runner = content_runner()
    media = [*(decoded(str(number).encode()) for number in MIXED), WHITE]
    layers = [4 if is_hard(number) else 1 for number in MIXED]
    explained = runner.explain(media, content(runner))
    assert [e.exit_layer for e in explained] == [*layers, 4]
    assert all(e.grid == (4, 4) for e in explained)


def test_explanation_of_a_stitch_keeps_all_patches() -> None:
    runner = content_runner()
    plan = Plan.parse(f"stitch:{STITCH.replaced}", runner.full)
    media = [decoded(str(number).encode()) for number in MIXED[:3]]
    assert runner.explain(media, plan) == [Explanation((4, 4), (), 4)] * 3
    for explanation, result in zip(runner.explain(media, plan), run(runner, MIXED[:3], plan), strict=True):
        assert explanation.exit_layer == result.exit_layer
        assert explanation.patch_states == ("kept",) * 16
        assert result.tokens == 17


def test_a_stitch_can_be_a_content_rung() -> None:
    runner = routed.runner()
    runner.content = ContentRungs(
        (ROUTER, "stitch:2", "full"), ((0.0, 10.0, 0.0), (0.0, 0.0, 0.0)), (-5.0, 9.0)
    )
    flat, hard = run(runner, [61, 66], content(runner))
    assert flat.chosen == Plan.parse(ROUTER, runner.full)
    assert hard.chosen == Plan.parse("stitch:2", runner.full)
    explained = runner.explain([decoded(b"61"), decoded(b"66")], content(runner))
    assert [e.exit_layer for e in explained] == [1, 4]
