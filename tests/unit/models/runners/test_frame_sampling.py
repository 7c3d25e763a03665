"""Stages of frames, glances and exits of clips."""

from typing import Any

import numpy as np
import pytest
import torch

from foveate.core.outcome import Result
from foveate.core.plan import Plan, sampled_frames
from foveate.models.runners.frame_sampling import VideoExecutor, coarse_to_fine, patch_features_of
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


def test_frames_are_in_the_middle_of_equal_spans() -> None:
    assert sampled_frames(8, 8) == list(range(8))
    assert sampled_frames(8, 4) == [1, 3, 5, 7]
    assert sampled_frames(16, 4) == [2, 6, 10, 14]
    assert sampled_frames(8, 1) == [4]


@pytest.mark.parametrize("count", range(1, 20))
def test_stages_contain_each_frame_once(count: int) -> None:
    frames = sampled_frames(32, count)
    actual = coarse_to_fine(frames)
    assert sorted(frame for stage in actual for frame in stage) == frames
    assert all(actual)


def test_first_stage_is_spread_over_the_clip() -> None:
    assert coarse_to_fine(sampled_frames(16, 16))[0] == [1, 5, 9, 13]


def test_clips_can_exit_after_the_glance(runner: ClipRunner, clips: list[np.ndarray]) -> None:
    actual = run(runner, clips, "glance:2:0.5/exit:0.0001")
    assert all(result.tokens == 0 and len(result.frames) == 8 for result in actual)
    assert actual[0].gflops < run(runner, clips, "glance:2:0.5")[0].gflops


def test_glance_selects_the_region_that_changes(runner: ClipRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one quarter of the frames changes, that quarter is computed in detail."""
    rng = np.random.default_rng(1)
    clip = np.repeat(rng.integers(0, 256, (1, 64, 64, 3), np.uint8), 8, 0)
    clip[:, :32, :32] = rng.integers(0, 256, (8, 32, 32, 3), np.uint8)
    entered: list[list[int]] = []

    def record_kept(*given: Any) -> torch.Tensor:
        kept = given[-1]
        if kept is not None:
            entered.extend(sorted(row) for row in kept.tolist())
        return patch_features_of(*given)

    monkeypatch.setattr("foveate.models.runners.frame_sampling.patch_features_of", record_kept)
    (result,) = run(runner, [clip], "glance:2:0.25")
    assert entered == [[0, 1, 4, 5]] * 2  # of a grid of 4 x 4
    assert result.tokens == 2 * (4 + 1)


@pytest.mark.parametrize("seed", [0, 2])
def test_patience_counts_predictions_after_each_frame(clips: list[np.ndarray], seed: int) -> None:
    """Of two models, one predicts the same class after the first two frames, and the other does not."""
    runner = ClipRunner(clip_checkpoint(seed))
    batch = runner.stack(clips, runner.full)
    executor = VideoExecutor(
        runner.model, lambda rows, frames, side: runner.preprocess(batch[rows, frames], side), 8
    )
    with torch.inference_mode():
        state = executor.add_frames(executor.start(len(clips)), [1, 5], runner.resolve(runner.full))
        first, second = executor.predict(state)[0].argmax(2).unbind(1)
    agree = (first == second).tolist()
    assert all(agree) if seed else not any(agree)
    assert [len(one.frames) == 2 for one in run(runner, clips, "exit:patience:1")] == agree
    assert all(len(one.frames) > 2 for one in run(runner, clips, "exit:patience:2"))
