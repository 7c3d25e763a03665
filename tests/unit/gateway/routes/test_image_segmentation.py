"""Masks of whole images: tiles of large images, and features shared with point prompts."""

import numpy as np
import pytest
from PIL import Image

from foveate.core.outcome import Result
from foveate.gateway.schemas.image import Segmentation
from tests.support.gateway import assert_problem
from tests.support.media_samples import RED, encode
from tests.support.point_prompt_gateway import click, scene_png, serving_points
from tests.support.red_segmenter import RedSegmenter, image_of, red_corner_png, segment, serving_red

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("one_thread")]


async def test_large_image_runs_in_tiles_that_share_batches() -> None:
    async with serving_red() as gateway:
        body = Segmentation.model_validate_json((await segment(gateway, red_corner_png(2600, 1400))).content)
        assert body.windows == 6
        assert sum(map(len, gateway.runner.batches)) == 6
        assert body.compute.gflops == 3.0
        assert body.compute.tokens_full == 60
        assert body.segments[0].share == pytest.approx(0.25, abs=0.02)
        assert image_of(body.mask).size == (2600, 1400)
        assert gateway.counted("ok") == 1


async def test_failed_tile_fails_the_request_once() -> None:
    class FailsOnBlue(RedSegmenter):
        def segment(self, pixels: np.ndarray) -> Result:
            if pixels[..., 0].mean() < 100:
                raise ValueError("blue")
            return super().segment(pixels)

    async with serving_red(FailsOnBlue()) as gateway:
        response = await segment(gateway, red_corner_png(2600, 1400))
        assert_problem(response, 500)
        assert gateway.counted("failed") == 1
        assert (await segment(gateway, encode(Image.new("RGB", (64, 64), RED), "PNG"))).status_code == 200


async def test_masks_and_point_prompts_share_the_features_of_an_image() -> None:
    async with serving_points() as gateway:
        clicked = await click(gateway, scene_png(), "120,80")
        masked = await gateway.post("/segment", scene_png())
        assert gateway.runner.images == 1, "responses are not cached here, but features are"
    async with serving_points(cache_bytes=2**20) as gateway:
        fresh = await gateway.post("/segment", scene_png())
        assert (await click(gateway, scene_png(), "120,80")).headers["x-cache"] == "hit"
        assert gateway.runner.images == 1
        assert fresh.json()["mask"] == masked.json()["mask"]
    async with serving_points(cache_bytes=2**20) as gateway:
        assert (await click(gateway, scene_png(), "120,80")).json()["mask"] == clicked.json()["mask"]
        again = await gateway.post("/segment", scene_png())
        assert gateway.runner.images == 1
        assert again.json()["mask"] == masked.json()["mask"]
        assert again.json()["compute"]["gflops"] == 0
        await gateway.post("/segment", scene_png(), cache_control="no-cache")
        assert gateway.runner.images == 2
        bypassing = await click(gateway, scene_png(), "120,80", cache_control="no-cache")
        assert bypassing.headers["x-cache"] == "miss"
        assert gateway.runner.images == 3


async def test_answer_from_cached_features_is_no_demand() -> None:
    async with serving_points(cache_bytes=2**20) as gateway:

        def demand() -> float:
            return gateway.metric("foveate_full_quality_seconds_total", model="tiny-seg")

        await gateway.post("/segment", scene_png())
        before = demand()
        assert before > 0
        again = await gateway.post("/segment?overlay=true", scene_png())
        assert again.headers["x-cache"] == "hit" or again.json()["compute"]["gflops"] == 0
        assert demand() == before
