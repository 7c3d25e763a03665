"""Clips named: frames, glances, reuse and exits in time, and what they cost."""

from typing import Any

import numpy as np
import pytest
import torch

from foveate.core.errors import BadPlan, RunFailed
from foveate.core.outcome import Result
from foveate.core.plan import Plan, sampled_frames
from foveate.models.layers.config import block_macs, embedding_macs
from foveate.models.runners.frame_sampling import VideoExecutor, patch_features_of, stages
from foveate.models.runners.video_classifier import ClipRunner
from tests.support.clip_heads import SMALL, SPEC, clip_checkpoint


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


def test_frames_are_picked_from_the_middle_of_equal_spans() -> None:
    assert sampled_frames(8, 8) == list(range(8))
    assert sampled_frames(8, 4) == [1, 3, 5, 7]
    assert sampled_frames(16, 4) == [2, 6, 10, 14]
    assert sampled_frames(8, 1) == [4]


@pytest.mark.parametrize("count", range(1, 20))
def test_stages_hold_every_frame_once(count: int) -> None:
    frames = sampled_frames(32, count)
    found = stages(frames)
    assert sorted(frame for stage in found for frame in stage) == frames
    assert all(found)


def test_the_first_stage_is_spread_over_the_clip() -> None:
    assert stages(sampled_frames(16, 16))[0] == [1, 5, 9, 13]


@pytest.mark.parametrize(
    "text",
    ["full", "frames:3", "48", "reuse:0.3", "glance:3:0.5", "glance:2", "exit:0.5", "depth:3", "evit:0.5",
     "tome:2", "frames:4/reuse:0.5/exit:0.4"],
)  # fmt: skip
def test_clips_do_not_see_one_another(runner: ClipRunner, clips: list[np.ndarray], text: str) -> None:
    text = f"tiny-clip@{text}" if text.isdecimal() else text
    together = run(runner, clips, text)
    for clip, result in zip(clips, together, strict=True):
        alone = run(runner, [clip], text)[0]
        np.testing.assert_allclose(result.scores, alone.scores, atol=2e-5)
        assert (result.frames, result.gflops, result.tokens) == (alone.frames, alone.gflops, alone.tokens)


def test_equal_plans_give_equal_answers(runner: ClipRunner, clips: list[np.ndarray]) -> None:
    full = run(runner, clips, "full")
    for text in ("frames:8", "reuse:1", "glance:8", "glance:8:1"):
        for one, other in zip(full, run(runner, clips, text), strict=True):
            np.testing.assert_allclose(one.scores, other.scores, atol=2e-5)


def test_what_is_said_rests_on_the_frames_so_far(runner: ClipRunner, clips: list[np.ndarray]) -> None:
    later = clips[0].copy()
    later[5:] = clips[1][5:]
    before, after = run(runner, [clips[0], later], "full")
    assert before.over_time is not None and after.over_time is not None
    np.testing.assert_allclose(before.over_time[:5], after.over_time[:5], atol=2e-5)
    assert np.abs(before.over_time[5:] - after.over_time[5:]).max() > 1e-3


def test_a_plan_sees_its_own_frames_alone(runner: ClipRunner, clips: list[np.ndarray]) -> None:
    other = clips[0].copy()
    other[[0, 2, 4, 6]] = 0
    one, same = run(runner, [clips[0], other], "frames:4")
    assert one.frames == (1, 3, 5, 7)
    np.testing.assert_allclose(one.scores, same.scores, atol=2e-5)


def test_time_tells_frames_apart(runner: ClipRunner, clips: list[np.ndarray]) -> None:
    forwards, backwards = run(runner, [clips[0], clips[0][::-1].copy()], "full")
    assert np.abs(forwards.scores - backwards.scores).max() > 1e-3


def test_leaving_early_gives_what_those_frames_give(runner: ClipRunner, clips: list[np.ndarray]) -> None:
    early = run(runner, clips, "exit:0.0001")  # whoever says anything is sure enough
    assert all(result.frames == (1, 5) for result in early)
    full = run(runner, clips, "full")
    assert all(one.gflops < other.gflops / 3 for one, other in zip(early, full, strict=True))
    never = run(runner, clips, "exit:1")
    for one, other in zip(never, full, strict=True):
        assert one.frames == other.frames and one.tokens == other.tokens
        np.testing.assert_allclose(one.scores, other.scores, atol=2e-5)


def test_some_leave_and_others_stay(runner: ClipRunner, clips: list[np.ndarray]) -> None:
    sure = sorted(result.scores.max() for result in run(runner, clips, "exit:0.0001"))
    between = f"exit:{(sure[1] + sure[2]) / 2:.5f}"
    found = run(runner, clips, between)
    assert 1 <= sum(result.frames == (1, 5) for result in found) < len(clips)
    for clip, result in zip(clips, found, strict=True):
        assert run(runner, [clip], between)[0].frames == result.frames


def test_a_glance_alone_may_do(runner: ClipRunner, clips: list[np.ndarray]) -> None:
    found = run(runner, clips, "glance:2:0.5/exit:0.0001")
    assert all(result.tokens == 0 and len(result.frames) == 8 for result in found)
    assert found[0].gflops < run(runner, clips, "glance:2:0.5")[0].gflops


def test_a_glance_looks_where_something_happens(runner: ClipRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a picture that is still but for one quarter, that quarter is looked at."""
    rng = np.random.default_rng(1)
    clip = np.repeat(rng.integers(0, 256, (1, 64, 64, 3), np.uint8), 8, 0)
    clip[:, :32, :32] = rng.integers(0, 256, (8, 32, 32, 3), np.uint8)
    entered: list[list[int]] = []

    def noted(*given: Any) -> torch.Tensor:
        kept = given[-1]
        if kept is not None:
            entered.extend(sorted(row) for row in kept.tolist())
        return patch_features_of(*given)

    monkeypatch.setattr("foveate.models.runners.frame_sampling.patch_features_of", noted)
    (result,) = run(runner, [clip], "glance:2:0.25")
    assert entered == [[0, 1, 4, 5]] * 2  # of a grid of 4 x 4
    assert result.tokens == 2 * (4 + 1)


@pytest.mark.parametrize("seed", [0, 2])
def test_patience_counts_what_was_said_after_each_frame(clips: list[np.ndarray], seed: int) -> None:
    """Of two models, one says the same after the first two frames, and the other does not."""
    runner = ClipRunner(clip_checkpoint(seed))
    batch = runner.stack(clips, runner.full)
    watcher = VideoExecutor(
        runner.model, lambda rows, frames, side: runner.sized(batch[rows, frames], side), 8
    )
    with torch.inference_mode():
        seen = watcher.further(watcher.unseen(len(clips)), [1, 5], runner.look(runner.full))
        first, second = watcher.said(seen)[0].argmax(2).unbind(1)
    agree = (first == second).tolist()
    assert all(agree) if seed else not any(agree)
    assert [len(one.frames) == 2 for one in run(runner, clips, "exit:patience:1")] == agree
    assert all(len(one.frames) > 2 for one in run(runner, clips, "exit:patience:2"))


def test_cost_is_the_sum_of_its_parts(runner: ClipRunner, clips: list[np.ndarray]) -> None:
    g, head = SMALL, runner.model.clip
    assert head is not None
    frame = embedding_macs(g, 64) + block_macs(g, 17, (17,) * 4) + 16 * g.width * SPEC.reads
    part = embedding_macs(g, 64) + block_macs(g, 6, (6,) * 4) + 16 * g.width * SPEC.reads
    glance = embedding_macs(g, 32) + block_macs(g, 5, (5,) * 2) + 4 * g.width * SPEC.reads
    for text, macs in {
        "full": 8 * frame + head.macs(8),
        "frames:3": 3 * frame + head.macs(3),
        "reuse:0.3": frame + 7 * part + head.macs(8),
        "glance:2:0.3": 8 * glance + 2 * part + 2 * head.macs(8),
        "glance:2": 8 * glance + 2 * frame + 2 * head.macs(8),
        "exit:1": 8 * frame + head.macs(2) + head.macs(4) + head.macs(8),
        "exit:0.0001": 2 * frame + head.macs(2) + head.macs(2),
    }.items():
        assert run(runner, clips[:1], text)[0].gflops == pytest.approx(macs / 1e9)


def test_the_card(runner: ClipRunner) -> None:
    card = runner.card
    assert (card.task, card.frames, card.labels) == ("classify", 8, ("a", "b", "c"))
    assert [str(rung.plan.frames) for rung in card.ladder] == ["2", "4", "6", "None"]
    costs = [rung.gflops for rung in card.ladder]
    assert costs == sorted(costs) and card.ladder[-1].plan == runner.full


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("frames:9", "8 frames"),
        ("glance:9", "1 to 8"),
        ("glance:0", "1 to 8"),
        ("glance:2:0", "share"),
        ("glance:2:0.5/reuse:0.5", "one of them"),
        ("glance:2:0.5/evit:0.5", "no reducer"),
        ("reuse:0.5/evit:0.5", "no reducer"),
        ("reuse:2", "share"),
        ("reuse:x", "share"),
        ("ats:8", "every frame"),
        ("content:0.9", "pictures"),
        ("tiny-clip@80", "64 pixels"),
        ("tiny-clip@64/fp16", "fp32"),
        ("other@64", "not a variant"),
        ("exit:nothing:1", "exit rule"),
    ],
)
def test_plans_that_cannot_be_run(runner: ClipRunner, text: str, word: str) -> None:
    with pytest.raises(BadPlan, match=word):
        runner.check(Plan.parse(text, runner.full))


def test_a_clip_that_cannot_be_told_fails_alone(clips: list[np.ndarray]) -> None:
    broken = clip_checkpoint()
    runner = ClipRunner(broken)
    sized = runner.sized

    def poisoned(batch: torch.Tensor, side: int) -> torch.Tensor:
        images = sized(batch, side)
        images[8:16] = torch.nan  # the second clip's
        return images

    runner.sized = poisoned  # type: ignore[method-assign]
    results = runner.run(runner.stack(clips[:3], runner.full), runner.full)
    assert [type(result) for result in results] == [Result, RunFailed, Result]


def test_frames_of_another_shape_are_refused(runner: ClipRunner, clips: list[np.ndarray]) -> None:
    with pytest.raises(RunFailed, match="expected"):
        runner.stack([clips[0][:4]], runner.full)
