"""POST /segment on videos: one mask for each frame, as JSON or as an animated PNG."""

import io

import numpy as np
import pytest
from PIL import Image

from foveate.core.outcome import Outcome, Result, Timings
from foveate.core.plan import Plan
from foveate.gateway.media.video import decode_clip
from foveate.gateway.media.video_demuxer import ClipLimits
from foveate.gateway.schemas.video import ClipSegmentation
from foveate.gateway.schemas.video_masks import frame_masks, tile_boxes
from foveate.models.runners.video_segmenter import ClipSegmenter
from tests.support.dense_heads import dense_checkpoint
from tests.support.gateway import assert_problem
from tests.support.red_segmenter import image_of
from tests.support.video_gateway import post_video, serving_videos
from tests.support.video_samples import clip

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("inference_on_one_thread")]


@pytest.fixture(scope="module")
def video() -> bytes:
    """Four seconds of 320 x 192."""
    return clip(count=100, rate=25)


async def test_every_sampled_frame_gets_a_mask(video: bytes) -> None:
    async with serving_videos() as gateway:
        response = await post_video(gateway, "/segment?overlay=true", video)
        answer = ClipSegmentation.model_validate_json(response.text)
        assert answer.model == "tiny-seg-clip" and answer.windows == 2
        assert [frame.at_s for frame in answer.frames] == answer.clip.sampled_s
        assert answer.clip.sampled_s == pytest.approx([0.5, 1.5, 2.5, 3.5], abs=0.04)
        for frame in answer.frames:
            mask = np.asarray(image_of(frame.mask))
            assert mask.shape == (192, 320)
            for area in frame.segments:
                assert area.area == int((mask == area.value).sum())
            assert frame.overlay is not None and image_of(frame.overlay).size == (320, 192)
        assert gateway.counted("ok", "tiny-seg-clip", "segment") == 1
        # A request that names a model of images goes to its clip model.
        named = await post_video(gateway, "/segment?model=tiny-seg", video)
        assert named.json()["frames"][0]["mask"] == answer.frames[0].mask


async def test_accept_image_png_gets_an_animated_mask(video: bytes) -> None:
    async with serving_videos() as gateway:
        expected = (await post_video(gateway, "/segment", video)).json()["frames"]
        response = await post_video(gateway, "/segment", video, accept="image/png")
        assert response.headers["content-type"] == "image/png"
        animation = Image.open(io.BytesIO(response.content))
        assert animation.size == (320, 192)
        frames = int(getattr(animation, "n_frames", 1))
        # Equal masks in a row are one frame that is shown longer.
        assert frames == len({frame["mask"] for frame in expected})
        masks = [np.asarray(image_of(frame["mask"])) for frame in expected]
        for number in range(frames):
            animation.seek(number)
            assert animation.mode == "P"
            assert any(np.array_equal(np.asarray(animation), mask) for mask in masks)


async def test_plan_with_temporal_reuse_costs_less(video: bytes) -> None:
    async with serving_videos() as gateway:
        full = (await post_video(gateway, "/segment", video, x_plan="full")).json()["compute"]
        less = (await post_video(gateway, "/segment", video, x_plan="reuse:0.25")).json()["compute"]
        assert less["gflops"] < full["gflops"] / 1.3
        assert less["rung"] == "reuse:0.25"


async def test_points_on_a_video_are_refused(video: bytes) -> None:
    async with serving_videos() as gateway:
        assert_problem(await post_video(gateway, "/segment?points=3,4", video), 400, "takes no points")


async def test_response_with_overlays_meets_a_long_deadline(video: bytes) -> None:
    async with serving_videos() as gateway:
        response = await post_video(gateway, "/segment?overlay=true", video, x_slo_ms="60000")
        assert response.status_code == 200
        assert response.headers["x-slo-met"] == "true"


async def test_tiles_under_different_plans_use_their_common_frames(video: bytes) -> None:
    runner = ClipSegmenter(dense_checkpoint(), frames=4)
    source = decode_clip(video, 4, 64, tile_boxes, "bicubic", ClipLimits())
    outcomes = []
    for pixels, text in zip(source.pixels, ("full", "frames:2"), strict=True):
        plan = Plan.parse(text, runner.full)
        (result,) = runner.run(runner.stack([pixels], plan), plan)
        assert isinstance(result, Result)
        outcomes.append(Outcome(result, plan, Timings(0, 0), 1))
    masks = frame_masks(source, outcomes, None, "PNG")
    assert [mask.at_s for mask in masks] == [source.at_s[1], source.at_s[3]]
