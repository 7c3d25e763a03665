"""The runner that classifies clips: results, exits in time, failures and the card."""

from typing import Any

import numpy as np
import pytest
import torch

from foveate.core.errors import RunFailed
from foveate.core.outcome import Result
from foveate.core.plan import Plan
from foveate.models.runners.video_classifier import ClipRunner
from tests.support.clip_heads import clip_checkpoint


@pytest.fixture(scope="module")
def runner() -> ClipRunner:
    return ClipRunner(clip_checkpoint())


@pytest.fixture(scope="module")
def clips() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (8, 64, 64, 3), np.uint8) for _ in range(5)]


def run(runner: ClipRunner, clips: list[np.ndarray], text: str) -> list[Result]:
    plan = Plan.parse(text, runner.full)
    results = runner.run(runner.stack(clips, plan), plan)
    assert all(isinstance(result, Result) for result in results)
    return [result for result in results if isinstance(result, Result)]


@pytest.mark.parametrize(
    "text",
    ["full", "frames:3", "48", "reuse:0.3", "glance:3:0.5", "glance:2", "exit:0.5", "depth:3", "evit:0.5",
     "tome:2", "frames:4/reuse:0.5/exit:0.4"],
)  # fmt: skip
def test_clips_of_a_batch_are_independent(runner: ClipRunner, clips: list[np.ndarray], text: str) -> None:
    text = f"tiny-clip@{text}" if text.isdecimal() else text
    together = run(runner, clips, text)
    for clip, result in zip(clips, together, strict=True):
        alone = run(runner, [clip], text)[0]
        np.testing.assert_allclose(result.scores, alone.scores, atol=2e-5)
        assert (result.frames, result.gflops, result.tokens) == (alone.frames, alone.gflops, alone.tokens)


def test_equal_plans_give_equal_results(runner: ClipRunner, clips: list[np.ndarray]) -> None:
    full = run(runner, clips, "full")
    for text in ("frames:8", "reuse:1", "glance:8", "glance:8:1"):
        for one, other in zip(full, run(runner, clips, text), strict=True):
            np.testing.assert_allclose(one.scores, other.scores, atol=2e-5)


@pytest.mark.parametrize(
    "text",
    ["glance:2", "glance:2:0.5", "glance:5:0.3", "tiny-clip@48/glance:3", "depth:3/glance:2",
     "evit:0.5/glance:2", "tiny-clip@48", "reuse:0.3", "depth:3", "evit:0.5", "tome:2"],
)  # fmt: skip
def test_a_still_clip_shows_no_motion_under_any_plan(
    runner: ClipRunner, clips: list[np.ndarray], text: str
) -> None:
    """Features of different sizes, depths or shares of patches in one clip must not look like motion."""
    still = [np.repeat(clip[:1], 8, 0) for clip in clips]
    for one, other in zip(run(runner, still, "full"), run(runner, still, text), strict=True):
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-3)


def test_scores_depend_on_the_frames_so_far_alone(runner: ClipRunner, clips: list[np.ndarray]) -> None:
    later = clips[0].copy()
    later[5:] = clips[1][5:]
    before, after = run(runner, [clips[0], later], "full")
    assert before.over_time is not None and after.over_time is not None
    np.testing.assert_allclose(before.over_time[:5], after.over_time[:5], atol=2e-5)
    assert np.abs(before.over_time[5:] - after.over_time[5:]).max() > 1e-3


def test_a_plan_uses_its_own_frames_alone(runner: ClipRunner, clips: list[np.ndarray]) -> None:
    other = clips[0].copy()
    other[[0, 2, 4, 6]] = 0
    one, same = run(runner, [clips[0], other], "frames:4")
    assert one.frames == (1, 3, 5, 7)
    np.testing.assert_allclose(one.scores, same.scores, atol=2e-5)


def test_order_of_frames_matters(runner: ClipRunner, clips: list[np.ndarray]) -> None:
    forwards, backwards = run(runner, [clips[0], clips[0][::-1].copy()], "full")
    assert np.abs(forwards.scores - backwards.scores).max() > 1e-3


def test_early_exit_uses_the_first_stage_alone(runner: ClipRunner, clips: list[np.ndarray]) -> None:
    early = run(runner, clips, "exit:0.0001")  # any prediction is sure enough
    assert all(result.frames == (1, 5) for result in early)
    full = run(runner, clips, "full")
    assert all(one.gflops < other.gflops / 3 for one, other in zip(early, full, strict=True))
    never = run(runner, clips, "exit:1")
    for one, other in zip(never, full, strict=True):
        assert one.frames == other.frames and one.tokens == other.tokens
        np.testing.assert_allclose(one.scores, other.scores, atol=2e-5)


def test_clips_of_a_batch_exit_independently(runner: ClipRunner, clips: list[np.ndarray]) -> None:
    sure = sorted(result.scores.max() for result in run(runner, clips, "exit:0.0001"))
    between = f"exit:{(sure[1] + sure[2]) / 2:.5f}"
    actual = run(runner, clips, between)
    assert 1 <= sum(result.frames == (1, 5) for result in actual) < len(clips)
    for clip, result in zip(clips, actual, strict=True):
        assert run(runner, [clip], between)[0].frames == result.frames


def test_card(runner: ClipRunner) -> None:
    card = runner.card
    assert (card.task, card.frames, card.labels) == ("classify", 8, ("a", "b", "c"))
    assert [str(rung.plan.frames) for rung in card.ladder] == ["2", "4", "6", "None"]
    costs = [rung.gflops for rung in card.ladder]
    assert costs == sorted(costs) and card.ladder[-1].plan == runner.full


def test_clip_without_finite_scores_fails_alone(clips: list[np.ndarray]) -> None:
    broken = clip_checkpoint()
    runner = ClipRunner(broken)
    sized = runner.preprocess

    def poisoned(batch: torch.Tensor, side: int, *normalisation: Any) -> torch.Tensor:
        images = sized(batch, side, *normalisation)
        images[8:16] = torch.nan  # the second clip's
        return images

    runner.preprocess = poisoned  # type: ignore[method-assign, assignment]
    results = runner.run(runner.stack(clips[:3], runner.full), runner.full)
    assert [type(result) for result in results] == [Result, RunFailed, Result]


def test_frames_of_another_shape_are_refused(runner: ClipRunner, clips: list[np.ndarray]) -> None:
    with pytest.raises(RunFailed, match="expected"):
        runner.stack([clips[0][:4]], runner.full)
