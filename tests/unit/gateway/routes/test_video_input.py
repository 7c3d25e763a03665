"""Clips on /classify and /segment: real files through real models with random weights."""

import asyncio
import base64
import io
import json
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from foveate.cluster.local import LocalCluster
from foveate.core.metrics import Metrics
from foveate.core.model import InputSpec
from foveate.core.outcome import Outcome, Result, Timings
from foveate.core.plan import Plan
from foveate.core.settings import MIB, Settings
from foveate.gateway.app import create_app
from foveate.gateway.media.video import decode_clip
from foveate.gateway.media.video_demuxer import ClipLimits
from foveate.gateway.routes import video_input
from foveate.gateway.schemas.image import Problem
from foveate.gateway.schemas.video import ClipClassification, ClipSegmentation
from foveate.gateway.schemas.video_masks import frame_masks, window_boxes
from foveate.models import huggingface
from foveate.models.runners.image import TorchRunner
from foveate.models.runners.video_classifier import ClipRunner
from foveate.models.runners.video_segmenter import ClipSegmenter
from tests.support.clip_heads import clip_checkpoint
from tests.support.dense_heads import dense_checkpoint
from tests.support.fake_runner import FakeRunner
from tests.support.media_samples import encode, red_corner
from tests.support.pretrained import CLIP, saved, settled, videomae
from tests.support.video_samples import clip

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("inference_on_one_thread")]
MP4, JPEG = {"content-type": "video/mp4"}, {"content-type": "image/jpeg"}


def segmenter() -> TorchRunner:
    """One that takes clips, too, as the shipped one does."""
    runner = TorchRunner(dense_checkpoint())
    beside = ClipSegmenter(replace(dense_checkpoint(), name="tiny-seg-clip"), frames=4)
    runner.submodels, runner.card = (beside,), replace(runner.card, clip_model="tiny-seg-clip")
    return runner


class Gateway:
    """A running app with its client."""

    def __init__(self, settings: Settings, clips: bool) -> None:
        self.metrics = Metrics()
        watchers: list[Callable[[], Any]] = (
            [lambda: ClipRunner(clip_checkpoint()), segmenter] if clips else []
        )
        cluster = LocalCluster([lambda: FakeRunner("namer", spec=InputSpec()), *watchers], self.metrics)
        self.app = create_app(cluster, settings, self.metrics)
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://test")

    async def post(self, path: str, body: bytes, **headers: str) -> httpx.Response:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.client.post(path, content=body, headers=MP4 | names)

    def counted(self, outcome: str, model: str, task: str = "classify") -> float:
        labels = {"model": model, "task": task, "outcome": outcome}
        return self.metrics.registry.get_sample_value("foveate_requests_total", labels) or 0.0


@asynccontextmanager
async def gateway(clips: bool = True, **settings: Any) -> AsyncIterator[Gateway]:
    here = Gateway(Settings(**settings), clips)
    async with here.app.router.lifespan_context(here.app), here.client:
        yield here


@pytest.fixture(scope="module")
def film() -> bytes:
    """Four seconds of 320 x 192."""
    return clip(count=100, rate=25)


def problem(response: httpx.Response, status: int) -> str:
    assert response.status_code == status, response.text
    return Problem.model_validate_json(response.text).detail


async def test_a_plan_of_fewer_frames_has_no_others_decoded_and_says_the_same(
    film: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def noting(*given: Any) -> Any:
        asked.append(given[-1])
        return decode_clip(*given)

    def all_of_them(*given: Any) -> Any:
        return decode_clip(*given[:-1])

    said = []
    for decode in (noting, all_of_them):
        monkeypatch.setattr("foveate.gateway.routes.video_input.decode_clip", decode)
        async with gateway(cache_bytes=0) as here:
            for plan in ("frames:2", "frames:4/glance:2"):
                response = await here.post("/classify", film, x_plan=plan)
                assert response.status_code == 200, response.text
                said.append(ClipClassification.model_validate_json(response.text))
    assert asked == [[2, 6], [1, 3, 5, 7]]
    for some, every in zip(said[:2], said[2:], strict=True):
        assert (some.predictions, some.over_time) == (every.predictions, every.over_time)
        assert some.clip == every.clip


async def test_a_clip_is_named(film: bytes) -> None:
    async with gateway() as here:
        response = await here.post("/classify?top_k=2", film)
        assert response.status_code == 200, response.text
        answer = ClipClassification.model_validate_json(response.text)
        assert answer.model == "tiny-clip"
        assert [len(moment.predictions) for moment in answer.over_time] == [2] * 8
        assert answer.over_time[-1].predictions == answer.predictions
        assert (answer.clip.width, answer.clip.height) == (320, 192)
        assert answer.clip.duration_s == pytest.approx(4)
        wanted = [(i + 0.5) / 2 for i in range(8)]
        assert answer.clip.sampled_s == pytest.approx(wanted, abs=0.04)
        assert response.headers["x-foveate-plan"] == "tiny-clip@64/fp32"
        assert here.counted("ok", "tiny-clip") == 1


async def test_a_pinned_plan_tells_which_frames(film: bytes) -> None:
    async with gateway() as here:
        response = await here.post("/classify", film, x_plan="frames:2")
        answer = ClipClassification.model_validate_json(response.text)
        assert answer.clip.sampled_s == pytest.approx([1.25, 3.25], abs=0.04)
        assert answer.compute.rung == "frames:2"
        assert "8 frames" in problem(await here.post("/classify", film, x_plan="frames:9"), 400)


@pytest.mark.parametrize("how", ["octets", "json", "multipart"])
async def test_however_a_clip_comes(film: bytes, how: str) -> None:
    async with gateway() as here:
        if how == "json":
            body = json.dumps({"data": base64.b64encode(film).decode()}).encode()
            response = await here.post("/classify", body, content_type="application/json")
        elif how == "multipart":
            response = await here.client.post("/classify", files={"file": ("clip.mp4", film, "video/mp4")})
        else:
            response = await here.post("/classify", film, content_type="application/octet-stream")
        assert ClipClassification.model_validate_json(response.text).model == "tiny-clip"
        assert here.counted("ok", "tiny-clip") == 1


async def test_pictures_go_where_pictures_went(film: bytes) -> None:
    picture = encode(red_corner(1), "JPEG")
    async with gateway() as here:
        assert (await here.post("/classify", picture, **JPEG)).json()["model"] == "namer"
        # Even under the wrong content type.
        assert (await here.post("/classify", picture)).json()["model"] == "namer"
        assert "takes clips" in problem(await here.post("/classify?model=tiny-clip", picture, **JPEG), 415)
        assert here.counted("invalid", "tiny-clip") == 1


async def test_every_pixel_of_a_clip(film: bytes) -> None:
    async with gateway() as here:
        response = await here.post("/segment?overlay=true", film)
        answer = ClipSegmentation.model_validate_json(response.text)
        assert answer.model == "tiny-seg-clip" and answer.windows == 2
        assert [frame.at_s for frame in answer.frames] == answer.clip.sampled_s
        assert answer.clip.sampled_s == pytest.approx([0.5, 1.5, 2.5, 3.5], abs=0.04)
        for frame in answer.frames:
            mask = np.asarray(opened(frame.mask))
            assert mask.shape == (192, 320)
            for found in frame.segments:
                assert found.area == int((mask == found.value).sum())
            assert frame.overlay is not None and opened(frame.overlay).size == (320, 192)
        assert here.counted("ok", "tiny-seg-clip", "segment") == 1
        # A model of pictures that is named passes clips on to the one beside it.
        named = await here.post("/segment?model=tiny-seg", film)
        assert named.json()["frames"][0]["mask"] == answer.frames[0].mask


async def test_masks_that_move(film: bytes) -> None:
    async with gateway() as here:
        told = (await here.post("/segment", film)).json()["frames"]
        response = await here.post("/segment", film, accept="image/png")
        assert response.headers["content-type"] == "image/png"
        moving = Image.open(io.BytesIO(response.content))
        assert moving.size == (320, 192)
        frames = int(getattr(moving, "n_frames", 1))
        assert frames == len({one["mask"] for one in told})  # equal ones in a row are shown longer
        wanted = [np.asarray(opened(one["mask"])) for one in told]
        for number in range(frames):
            moving.seek(number)
            assert moving.mode == "P"
            assert any(np.array_equal(np.asarray(moving), mask) for mask in wanted)


async def test_reuse_is_a_plan(film: bytes) -> None:
    async with gateway() as here:
        full = (await here.post("/segment", film, x_plan="full")).json()["compute"]
        less = (await here.post("/segment", film, x_plan="reuse:0.25")).json()["compute"]
        assert less["gflops"] < full["gflops"] / 1.3
        assert less["rung"] == "reuse:0.25"


async def test_points_are_for_pictures(film: bytes) -> None:
    async with gateway() as here:
        assert "takes no points" in problem(await here.post("/segment?points=3,4", film), 400)


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        (b"", 400, "empty"),
        (b"\x00\x00\x00\x20ftypisom" + bytes(40), 422, "clip"),
        (b"\x1a\x45\xdf\xa3" + bytes(40), 415, "EBML"),
        (b"no clip at all" * 9, 422, "not"),
    ],
)
async def test_what_is_no_clip(body: bytes, status: int, word: str) -> None:
    async with gateway() as here:
        for path in ("/classify", "/segment"):
            assert word in problem(await here.post(path, body), status)


async def test_limits(film: bytes) -> None:
    async with gateway(max_clip_s=3.0) as here:
        assert "3 s" in problem(await here.post("/classify", film), 413)
    async with gateway(max_video_pixels=1000) as here:
        assert "320 x 192" in problem(await here.post("/classify", film), 413)
    async with gateway(max_video_bytes=1000) as here:
        assert "1000 bytes" in problem(await here.post("/classify", film), 413)
        assert here.counted("invalid", "tiny-clip") == 1


async def test_a_deadline_holds_while_decoding(film: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    decoding = decode_clip

    def slowly(*given: Any) -> Any:
        time.sleep(0.4)
        return decoding(*given)

    monkeypatch.setattr(video_input, "decode_clip", slowly)
    async with gateway() as here:
        assert "deadline" in problem(await here.post("/classify", film, x_slo_ms="300"), 504)
        assert here.counted("expired", "tiny-clip") == 1


async def test_clips_that_wait_for_a_thread_past_their_deadline_are_not_read(
    film: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoding, read = decode_clip, list[float]()

    def slowly(*given: Any) -> Any:
        time.sleep(0.5)
        read.append(time.monotonic())
        return decoding(*given)

    monkeypatch.setattr(video_input, "decode_clip", slowly)
    async with gateway(decode_threads=1) as here:
        calls = [here.post("/classify", film, x_slo_ms="400") for _ in range(3)]
        assert [answer.status_code for answer in await asyncio.gather(*calls)] == [504] * 3
        await asyncio.sleep(0.7)
    assert len(read) == 1


async def test_drawing_past_the_deadline_is_late_and_not_the_clients_fault(film: bytes) -> None:
    async with gateway() as here:
        response = await here.post("/segment?overlay=true", film, x_slo_ms="60000")
        assert response.status_code == 200
        assert response.headers["x-slo-met"] == "true"


async def test_windows_under_different_plans_agree_on_the_frames(film: bytes) -> None:
    runner = ClipSegmenter(dense_checkpoint(), frames=4)
    source = decode_clip(film, 4, 64, window_boxes, "bicubic", ClipLimits())
    outcomes = []
    for pixels, text in zip(source.pixels, ("full", "frames:2"), strict=True):
        plan = Plan.parse(text, runner.full)
        (result,) = runner.run(runner.stack([pixels], plan), plan)
        assert isinstance(result, Result)
        outcomes.append(Outcome(result, plan, Timings(0, 0), 1))
    shown = frame_masks(source, outcomes, None, "PNG")
    assert [one.at_s for one in shown] == [source.at_s[1], source.at_s[3]]


async def test_large_clips_lie_on_disk_and_leave_nothing(
    film: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    large = film + (5 * MIB).to_bytes(4, "big") + b"free" + bytes(5 * MIB - 8)
    async with gateway() as here:
        response = await here.post("/classify", large)
        assert response.status_code == 200, response.text
        assert "not a clip" in problem(await here.post("/classify", bytes(5 * MIB)), 422)
    assert not os.listdir(tmp_path)  # noqa: PTH208 -- nothing else runs on this event loop


async def test_without_a_model_for_clips(film: bytes) -> None:
    async with gateway(clips=False) as here:
        assert "takes pictures" in problem(await here.post("/classify", film), 415)
        problem(await here.post("/segment", film), 404)


def opened(url: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


async def test_a_checkpoint_of_transformers_takes_clips_too(film: bytes, tmp_path: Path) -> None:
    path = saved(tmp_path / "videomae", settled(videomae()), CLIP)
    runner = huggingface.runner(huggingface.load(str(path)), "fp32", "cpu", 0, None)
    metrics = Metrics()
    app = create_app(LocalCluster([lambda: runner], metrics), Settings(), metrics)
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")
    async with app.router.lifespan_context(app), client:
        response = await client.post("/classify", content=film, headers=MP4)
        answer = ClipClassification.model_validate_json(response.text)
    assert answer.model == "videomae"
    assert len(answer.clip.sampled_s) == runner.card.frames
    assert sum(said.score for said in answer.predictions) == pytest.approx(1, abs=1e-3)
