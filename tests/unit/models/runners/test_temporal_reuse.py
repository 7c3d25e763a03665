"""Temporal reuse against a plain loop over frames and patches."""

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
from foveate.models.runners.temporal_reuse import NOISE, cells_of, first_look, look_again
from foveate.models.runners.video_segmenter import ClipSegmenter
from tests.support.dense_heads import dense_checkpoint


def read(images: Tensor, kept: Tensor | None) -> Tensor:
    """The mean colour of each patch of 8 pixels, for those that enter."""
    patches = torch.nn.functional.avg_pool2d(images, 8).flatten(2).transpose(1, 2)
    if kept is None:
        return patches
    return torch.zeros_like(patches).scatter(
        1, kept.unsqueeze(-1).expand(-1, -1, 3), patches.gather(1, kept.unsqueeze(-1).expand(-1, -1, 3))
    )


def slowly(frames: Tensor, share: int, weight: Tensor | None) -> Tensor:
    """One clip (T, 3, S, S): frame by frame, patch by patch."""
    cells, canvas = cells_of(frames, 8), read(frames, None)
    held, now, out = cells[0].clone(), canvas[0].clone(), [canvas[0].clone()]
    for number in range(1, len(frames)):
        change = [float((cells[number, p] - held[p]).abs().mean()) for p in range(len(held))]
        counts = change if weight is None else [c * float(w) for c, w in zip(change, weight, strict=True)]
        for p in sorted(range(len(held)), key=lambda p: -counts[p])[:share]:
            if change[p] > NOISE:
                held[p], now[p] = cells[number, p], canvas[number, p]
        out.append(now.clone())
    return torch.stack(out)


@pytest.mark.parametrize("weighted", [False, True])
def test_against_a_plain_loop(weighted: bool) -> None:
    torch.manual_seed(0)
    clips = torch.rand(3, 6, 3, 32, 32)
    weight = torch.rand(3, 16) + 0.5 if weighted else None
    memory = first_look(read, clips[:, 0], 8)
    found, after = look_again(read, clips[:, 1:], 0.3, 8, memory, weight)
    for row in range(3):
        wanted = slowly(clips[row], 5, None if weight is None else weight[row])
        torch.testing.assert_close(found[row], wanted[1:])
        torch.testing.assert_close(after.canvas[row], wanted[-1])


def test_it_goes_on_where_it_stopped() -> None:
    torch.manual_seed(1)
    clips = torch.rand(2, 7, 3, 32, 32)
    start = first_look(read, clips[:, 0], 8)
    at_once, _ = look_again(read, clips[:, 1:], 0.25, 8, start)
    early, memory = look_again(read, clips[:, 1:4], 0.25, 8, start)
    late, _ = look_again(read, clips[:, 4:], 0.25, 8, memory)
    torch.testing.assert_close(at_once, torch.cat([early, late], 1))


def test_slow_change_adds_up() -> None:
    """A patch that changes a little in every frame is computed again in the end."""
    frames = torch.zeros(1, 6, 3, 32, 32)
    for number in range(6):
        frames[:, number, :, :8, :8] = 0.1 * number
    frames[:, 1:3, :, 8:16, 8:16] = 0.15  # one that changed once, by more than a single step
    found, _ = look_again(read, frames[:, 1:], 1 / 16, 8, first_look(read, frames[:, 0], 8))
    assert found[0, -1, 0, 0] > 0.3


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


def test_full_is_each_frame_by_itself(segmenter: ClipSegmenter) -> None:
    clip = clip_of(segmenter, 0)
    result = answer(segmenter, clip, "full")
    pictures = TorchRunner(dense_checkpoint())
    alone = pictures.run(pictures.stack(list(clip), pictures.full), pictures.full)
    for seen, picture in zip(result.frame_maps, alone, strict=True):
        assert isinstance(picture, Result) and picture.maps is not None
        assert seen.classes == picture.maps.classes
        np.testing.assert_allclose(seen.scores, picture.maps.scores, atol=2e-3)
    assert result.gflops == pytest.approx(sum(r.gflops for r in alone if isinstance(r, Result)))


def test_a_still_clip_is_seen_once(segmenter: ClipSegmenter) -> None:
    still = np.repeat(clip_of(segmenter, 1)[:1], 4, 0)
    noisy = np.clip(still.astype(int) + np.random.default_rng(2).integers(-2, 3, still.shape), 0, 255)
    for clip in (still, noisy.astype(np.uint8)):
        first, *later = answer(segmenter, clip, "reuse:0.3").frame_maps
        fine = answer(segmenter, clip, "full").frame_maps[0]
        assert first.classes == fine.classes
        np.testing.assert_allclose(first.scores, fine.scores, atol=2e-3)
    first, *later = answer(segmenter, still, "reuse:0.3").frame_maps
    for seen in later:
        np.testing.assert_allclose(seen.scores, first.scores, atol=2e-3)


def test_reuse_costs_less(segmenter: ClipSegmenter) -> None:
    clip = clip_of(segmenter, 2)
    costs = [answer(segmenter, clip, text).gflops for text in ("reuse:0.2", "reuse:0.5", "full")]
    assert costs == sorted(costs) and costs[0] < costs[2] / 1.4


def test_what_was_found_before_draws_the_looks(
    segmenter: ClipSegmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two patches change alike; the one that showed an object is looked at."""
    side, patch = segmenter.full.image_size, segmenter.model.config.patch_size
    clip = np.full((4, side, side, 3), 90, np.uint8)
    for number in range(4):
        clip[number, :patch, :patch] += 20 * number
        clip[number, -patch:, -patch:] += 20 * number
    objects = torch.zeros(1, 16, 5)
    objects[..., 0] = 9.0  # background, but for the last one
    objects[:, 15, 0], objects[:, 15, 1] = 0.0, 9.0
    entered: list[set[int]] = []

    def noted(*given: Any) -> Tensor:
        if given[-1] is not None:
            entered.extend(set(row) for row in given[-1].tolist())
        return patch_features_of(*given)

    monkeypatch.setattr("foveate.models.runners.video_segmenter.patch_features_of", noted)
    monkeypatch.setattr(dense_of(segmenter.model), "classify_patches", lambda _: objects)
    answer(segmenter, clip, "reuse:0.05")
    assert entered[:2] == [{15}, {15}]


@pytest.mark.parametrize(
    "text", ["frames:5", "exit:0.9", "glance:2", "reuse:0.5/evit:0.5", "content:0.9", "dtop:0.9"]
)
def test_plans_that_cannot_be_run(segmenter: ClipSegmenter, text: str) -> None:
    with pytest.raises(BadPlan):
        segmenter.check(Plan.parse(text, segmenter.full))
