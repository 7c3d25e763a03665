"""The runner that segments clips: reuse of patches, its cost, and refusals."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from foveate.core.errors import BadPlan
from foveate.core.outcome import Result
from foveate.core.plan import Plan
from foveate.models.runners.dense import dense_of
from foveate.models.runners.frame_sampling import patch_features_of
from foveate.models.runners.image import TorchRunner
from foveate.models.runners.video_segmenter import ClipSegmenter
from tests.support.dense_heads import dense_checkpoint


@pytest.fixture(scope="module")
def segmenter() -> ClipSegmenter:
    return ClipSegmenter(dense_checkpoint(), frames=4)


def answer(segmenter: ClipSegmenter, clip: np.ndarray, text: str) -> Result:
    plan = Plan.parse(text, segmenter.full)
    (result,) = segmenter.run(segmenter.stack([clip], plan), plan)
    assert isinstance(result, Result)
    return result


def clip_of(segmenter: ClipSegmenter, seed: int) -> np.ndarray:
    side = segmenter.full.image_size
    return np.random.default_rng(seed).integers(0, 256, (4, side, side, 3), np.uint8)


def test_full_segments_each_frame_like_an_image(segmenter: ClipSegmenter) -> None:
    clip = clip_of(segmenter, 0)
    result = answer(segmenter, clip, "full")
    image_runner = TorchRunner(dense_checkpoint())
    single = image_runner.run(image_runner.stack(list(clip), image_runner.full), image_runner.full)
    for frame, by_itself in zip(result.frame_maps, single, strict=True):
        assert isinstance(by_itself, Result) and by_itself.maps is not None
        assert frame.classes == by_itself.maps.classes
        np.testing.assert_allclose(frame.scores, by_itself.maps.scores, atol=2e-3)
    assert result.gflops == pytest.approx(sum(r.gflops for r in single if isinstance(r, Result)))


def test_patches_of_a_still_clip_are_computed_once(segmenter: ClipSegmenter) -> None:
    still = np.repeat(clip_of(segmenter, 1)[:1], 4, 0)
    noisy = np.clip(still.astype(int) + np.random.default_rng(2).integers(-2, 3, still.shape), 0, 255)
    for clip in (still, noisy.astype(np.uint8)):
        first, *later = answer(segmenter, clip, "reuse:0.3").frame_maps
        fine = answer(segmenter, clip, "full").frame_maps[0]
        assert first.classes == fine.classes
        np.testing.assert_allclose(first.scores, fine.scores, atol=2e-3)
    first, *later = answer(segmenter, still, "reuse:0.3").frame_maps
    for frame in later:
        np.testing.assert_allclose(frame.scores, first.scores, atol=2e-3)


def test_reuse_costs_less(segmenter: ClipSegmenter) -> None:
    clip = clip_of(segmenter, 2)
    costs = [answer(segmenter, clip, text).gflops for text in ("reuse:0.2", "reuse:0.5", "full")]
    assert costs == sorted(costs) and costs[0] < costs[2] / 1.4


def test_changes_on_objects_are_computed_first(
    segmenter: ClipSegmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two patches change equally; the one on an object is computed."""
    side, patch = segmenter.full.image_size, segmenter.model.config.patch_size
    clip = np.full((4, side, side, 3), 90, np.uint8)
    for number in range(4):
        clip[number, :patch, :patch] += 20 * number
        clip[number, -patch:, -patch:] += 20 * number
    objects = torch.zeros(1, 16, 5)
    objects[..., 0] = 9.0  # background, except for the last one
    objects[:, 15, 0], objects[:, 15, 1] = 0.0, 9.0
    entered: list[set[int]] = []

    def record_kept(*given: Any) -> Tensor:
        if given[-1] is not None:
            entered.extend(set(row) for row in given[-1].tolist())
        return patch_features_of(*given)

    monkeypatch.setattr("foveate.models.runners.video_segmenter.patch_features_of", record_kept)
    monkeypatch.setattr(dense_of(segmenter.model), "classify_patches", lambda _: objects)
    answer(segmenter, clip, "reuse:0.05")
    assert entered[:2] == [{15}, {15}]


@pytest.mark.parametrize(
    "text", ["frames:5", "exit:0.9", "glance:2", "reuse:0.5/evit:0.5", "content:0.9", "dtop:0.9"]
)
def test_plans_that_cannot_run_are_refused(segmenter: ClipSegmenter, text: str) -> None:
    with pytest.raises(BadPlan):
        segmenter.check(Plan.parse(text, segmenter.full))
