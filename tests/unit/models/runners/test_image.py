"""Plans that leave the rung to the content: what runs, what it takes, what is refused, what is explained."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from foveate.core.content import ContentRungs
from foveate.core.errors import BadPlan, RunFailed
from foveate.core.outcome import Explanation, Result
from foveate.core.plan import Plan
from foveate.models.profiling.content_profile import learn
from foveate.models.runners.image import TorchRunner
from tests.support import measuring, routed
from tests.support.routed import ROUTER, STITCH, WHITE, is_hard, picture

RUNGS = (ROUTER, "evit:0.6", "full")

pytestmark = pytest.mark.usefixtures("one_thread")


def choosing(max_batch: int = 16) -> TorchRunner:
    runner = routed.runner(max_batch)
    offered = [(measuring.plan(ROUTER, 0.9, 0.1), measuring.plan("full", 1.0, 1.0))]
    runner.content = learn(runner, routed.images(60), range(60), offered, lambda *_: None)
    assert runner.content is not None
    return runner


def content(runner: TorchRunner, certainty: str = "0.9") -> Plan:
    return Plan.parse(f"content:{certainty}", runner.full)


def run(runner: TorchRunner, numbers: list[int], plan: Plan) -> list[Result]:
    media = [picture(str(number).encode()) for number in numbers]
    results = runner.run(runner.stack(media, plan), plan)
    assert len(results) == len(numbers)
    found = [result for result in results if isinstance(result, Result)]
    assert len(found) == len(numbers)
    return found


MIXED = [61, 66, 62, 63, 72, 78, 64]


def test_each_picture_gets_the_answer_of_its_rung_in_its_own_place() -> None:
    runner = choosing()
    router = Plan.parse(ROUTER, runner.full)
    for number, result in zip(MIXED, run(runner, MIXED, content(runner)), strict=True):
        rung = runner.full if is_hard(number) else router
        assert result.chosen == rung
        (alone,) = run(runner, [number], rung)
        assert np.abs(result.scores - alone.scores).max() < 1e-5
        assert (result.tokens, result.exit_layer) == (alone.tokens, alone.exit_layer)


def test_what_was_spent_is_the_router_and_the_rung() -> None:
    runner = choosing()
    (router,), (full,) = (run(runner, [61], Plan.parse(text, runner.full)) for text in (ROUTER, "full"))
    for number, result in zip(MIXED, run(runner, MIXED, content(runner)), strict=True):
        wanted = router.gflops + (full.gflops if is_hard(number) else 0)
        assert result.gflops == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("numbers", [[61], [66], [61, 62, 63], [66, 72, 78]])
def test_a_batch_may_be_all_of_one_rung(numbers: list[int]) -> None:
    runner = choosing()
    rung = runner.full if is_hard(numbers[0]) else Plan.parse(ROUTER, runner.full)
    assert [result.chosen for result in run(runner, numbers, content(runner))] == [rung] * len(numbers)


def test_a_batch_may_go_three_ways() -> None:
    """The lead of the best class is 0.98 on flat pictures, 0.1 on the others."""
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


def test_other_plans_say_nothing_of_a_choice() -> None:
    runner = choosing()
    for text in ("full", "evit:0.6", ROUTER):
        assert {r.chosen for r in run(runner, MIXED, Plan.parse(text, runner.full))} == {None}


def test_certainty_decides_who_goes_on() -> None:
    runner = choosing()
    assert {r.chosen for r in run(runner, MIXED, content(runner, "1"))} == {runner.full}
    assert {r.chosen for r in run(runner, MIXED, content(runner, "0.0001"))} != {runner.full}


def test_where_the_router_fails_the_last_rung_answers() -> None:
    runner = choosing()
    plan, router = content(runner), Plan.parse(ROUTER, runner.full)
    media = [picture(b"61"), WHITE, picture(b"62")]
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


def test_where_the_last_rung_fails_too_that_picture_fails_alone() -> None:
    runner = choosing()
    plan = content(runner)

    def spoil(_: object, images: tuple[torch.Tensor], out: torch.Tensor) -> torch.Tensor:
        white = (images[0] > 0.999).flatten(1).all(1)
        return out.masked_fill(white[:, None, None], torch.nan)

    runner.models["tiny"].patch_embed.register_forward_hook(spoil)
    media = [picture(b"66"), WHITE, picture(b"61")]
    hard, white, flat = runner.run(runner.stack(media, plan), plan)
    assert isinstance(white, RunFailed)
    assert isinstance(hard, Result)
    assert isinstance(flat, Result)
    assert (hard.chosen, flat.chosen) == (runner.full, Plan.parse(ROUTER, runner.full))


@pytest.mark.parametrize("text", ["content:0.9", "content:.5", "content:1", "content:0.000001"])
def test_a_probability_is_accepted(text: str) -> None:
    runner = choosing()
    runner.check(Plan.parse(text, runner.full))
    runner.check(runner.card.plan(text))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("content:0", "probability above 0 and at most 1, as in 0.9; got '0'"),
        ("content:1.01", "probability above 0 and at most 1"),
        ("content:x", "probability above 0 and at most 1, as in 0.9; got 'x'"),
        ("content:nan", "probability above 0 and at most 1"),
        ("content:inf", "probability above 0 and at most 1"),
        ("content:-1", "probability above 0 and at most 1"),
        ("content:0.9/evit:0.5", "it stands alone"),
        ("evit:0.5/content:0.9", "it stands alone"),
        ("content:0.9/depth:2", "it stands alone"),
        ("content:0.9/heads:1", "it stands alone"),
        ("content:0.9/stitch:2", "it stands alone"),
        ("tiny@32/content:0.9", "it stands alone"),
        ("router@64/content:0.9", "it stands alone"),
        ("vit-xs@112/content:0.9", "vit-xs is not a variant of tiny"),
        ("content:0.9/bf16", "is loaded in fp32"),
    ],
)
def test_content_plans_that_cannot_be_are_refused_in_a_sentence(text: str, sentence: str) -> None:
    runner = choosing()
    with pytest.raises(BadPlan, match=sentence) as refused:
        runner.check(Plan.parse(text, runner.full))
    assert "\n" not in refused.value.detail


@pytest.mark.parametrize("text", ["content:0.9", "content:1", "content:0", "content:x"])
def test_without_anything_learnt_there_is_no_choosing(text: str) -> None:
    runner = routed.runner()
    with pytest.raises(BadPlan, match="tiny has no content rungs; foveate profile finds them"):
        runner.check(Plan.parse(text, runner.full))


@pytest.mark.parametrize("text", ["content", "content:0.9/content:0.8"])
def test_the_text_of_a_content_plan(text: str) -> None:
    runner = choosing()
    with pytest.raises(BadPlan):
        runner.check(Plan.parse(text, runner.full))
    assert str(Plan.parse("content:.90", runner.full)) == "tiny@64/content:0.9/fp32"


# What was looked at.


def test_under_a_content_plan_each_picture_is_explained_under_its_rung() -> None:
    runner = routed.runner()
    runner.content = ContentRungs(("evit:0.6", ROUTER, "full"), ((0.0, 0.0, 0.0),) * 2, (-9.0, -9.0))
    every = [picture(str(number).encode()) for number in MIXED]
    assert runner.explain(every, content(runner)) == runner.explain(every, runner.full)
    runner.content = replace(runner.content, bias=(9.0, -9.0))
    explained = runner.explain(every, content(runner))
    assert explained == runner.explain(every, Plan.parse("evit:0.6", runner.full))
    assert all(explanation.stages for explanation in explained)


def test_explanations_of_a_mixed_batch_keep_their_places() -> None:
    runner = choosing()
    media = [*(picture(str(number).encode()) for number in MIXED), WHITE]
    layers = [4 if is_hard(number) else 1 for number in MIXED]
    explained = runner.explain(media, content(runner))
    assert [e.exit_layer for e in explained] == [*layers, 4]
    assert all(e.grid == (4, 4) for e in explained)


def test_under_a_stitch_nothing_is_dropped_and_every_block_of_the_one_that_answers_counts() -> None:
    runner = choosing()
    plan = Plan.parse(f"stitch:{STITCH.replaced}", runner.full)
    media = [picture(str(number).encode()) for number in MIXED[:3]]
    assert runner.explain(media, plan) == [Explanation((4, 4), (), 4)] * 3
    for explanation, result in zip(runner.explain(media, plan), run(runner, MIXED[:3], plan), strict=True):
        assert explanation.exit_layer == result.exit_layer
        assert explanation.patch_states == ("kept",) * 16
        assert result.tokens == 17


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("stitch:3", "tiny has no stitch 3; it has 2"),
        ("stitch:2/evit:0.5", "takes tokens unreduced"),
        ("stitch:2/depth:3", "takes tokens unreduced"),
        ("router@64/stitch:1", "router has no stitch 1; it has none"),
    ],
)
def test_stitches_that_cannot_be_are_refused_in_a_sentence(text: str, sentence: str) -> None:
    runner = routed.runner()
    with pytest.raises(BadPlan, match=sentence):
        runner.check(Plan.parse(text, runner.full))


def test_a_stitch_can_be_a_rung_that_the_content_chooses() -> None:
    runner = routed.runner()
    runner.content = ContentRungs(
        (ROUTER, "stitch:2", "full"), ((0.0, 10.0, 0.0), (0.0, 0.0, 0.0)), (-5.0, 9.0)
    )
    flat, hard = run(runner, [61, 66], content(runner))
    assert flat.chosen == Plan.parse(ROUTER, runner.full)
    assert hard.chosen == Plan.parse("stitch:2", runner.full)
    explained = runner.explain([picture(b"61"), picture(b"66")], content(runner))
    assert [e.exit_layer for e in explained] == [1, 4]
