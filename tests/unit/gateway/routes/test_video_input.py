"""Videos on the task routes: recognised, decoded and limited. Real files and models, random weights."""

import asyncio
import base64
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from foveate.core.settings import MIB
from foveate.gateway.media.video import decode_clip
from foveate.gateway.routes import video_input
from foveate.gateway.schemas.video import ClipClassification
from foveate.models import huggingface
from tests.support.gateway import assert_problem, serving
from tests.support.media_samples import encode, red_corner
from tests.support.other_media import UNSUPPORTED
from tests.support.pretrained import CLIP, saved, settled, videomae
from tests.support.video_gateway import post_video, serving_videos
from tests.support.video_samples import clip

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("inference_on_one_thread")]


@pytest.fixture(scope="module")
def video() -> bytes:
    """Four seconds of 320 x 192."""
    return clip(count=100, rate=25)


async def test_video_is_classified(video: bytes) -> None:
    async with serving_videos() as gateway:
        response = await post_video(gateway, "/classify?top_k=2", video)
        assert response.status_code == 200, response.text
        answer = ClipClassification.model_validate_json(response.text)
        assert answer.model == "tiny-clip"
        assert [len(moment.predictions) for moment in answer.over_time] == [2] * 8
        assert answer.over_time[-1].predictions == answer.predictions
        assert (answer.clip.width, answer.clip.height) == (320, 192)
        assert answer.clip.duration_s == pytest.approx(4)
        expected = [(i + 0.5) / 2 for i in range(8)]
        assert answer.clip.sampled_s == pytest.approx(expected, abs=0.04)
        assert response.headers["x-foveate-plan"] == "tiny-clip@64/fp32"
        assert gateway.counted("ok", "tiny-clip") == 1


async def test_plan_with_fewer_frames_decodes_only_those_and_gives_the_same_answer(
    video: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[Any] = []

    def recording(*arguments: Any) -> Any:
        chosen.append(arguments[-1])
        return decode_clip(*arguments)

    def decoding_all(*arguments: Any) -> Any:
        return decode_clip(*arguments[:-1])

    answers = []
    for decode in (recording, decoding_all):
        monkeypatch.setattr("foveate.gateway.routes.video_input.decode_clip", decode)
        async with serving_videos(cache_bytes=0) as gateway:
            for plan in ("frames:2", "frames:4/glance:2"):
                response = await post_video(gateway, "/classify", video, x_plan=plan)
                assert response.status_code == 200, response.text
                answers.append(ClipClassification.model_validate_json(response.text))
    assert chosen == [[2, 6], [1, 3, 5, 7]]
    for sampled, full in zip(answers[:2], answers[2:], strict=True):
        assert (sampled.predictions, sampled.over_time) == (full.predictions, full.over_time)
        assert sampled.clip == full.clip


@pytest.mark.parametrize("place", ["form", "json", "untyped"])
async def test_clip_may_stand_in_any_body(video: bytes, place: str) -> None:
    options = {"top_k": "2", "plan": "frames:2"}
    async with serving_videos() as gateway:
        client, text = gateway.client, base64.b64encode(video).decode()
        if place == "form":
            response = await client.post("/classify", files={"file": ("a.mp4", video)}, data=options)
        elif place == "json":
            response = await client.post("/classify", json={"data": text, **options})
        else:
            response = await client.post("/classify?top_k=2&model=tiny-clip&plan=frames:2", content=video)
        assert response.status_code == 200, response.text
        answer = ClipClassification.model_validate_json(response.text)
        assert answer.model == "tiny-clip"
        assert len(answer.predictions) == 2
        assert answer.compute.rung == "frames:2"


@pytest.mark.parametrize("place", ["form", "untyped"])
async def test_clip_over_the_limit_for_images_is_answered_from_disk(
    video: bytes, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    large = video + b"\x00\x60\x00\x00free" + bytes(6 * MIB - 8)  # a box that players skip
    async with serving_videos(max_body_bytes=MIB) as gateway:
        if place == "form":
            response = await gateway.client.post("/classify", files={"file": ("a.mp4", large)})
        else:
            response = await gateway.client.post("/classify", content=large)
        assert response.status_code == 200, response.text
        assert response.json()["model"] == "tiny-clip"
        encoded = json.dumps({"data": base64.b64encode(large).decode()})
        refused = await gateway.post("/classify", encoded.encode(), content_type="application/json")
        assert_problem(refused, 413, "send a clip under its own type, as in content-type: video/mp4")
        assert gateway.app.state.limiter.bytes == 0
    assert not os.listdir(tmp_path)  # noqa: PTH208 -- nothing else runs on this event loop


async def test_pinned_plan_chooses_the_frames(video: bytes) -> None:
    async with serving_videos() as gateway:
        response = await post_video(gateway, "/classify", video, x_plan="frames:2")
        answer = ClipClassification.model_validate_json(response.text)
        assert answer.clip.sampled_s == pytest.approx([1.25, 3.25], abs=0.04)
        assert answer.compute.rung == "frames:2"
        assert_problem(await post_video(gateway, "/classify", video, x_plan="frames:9"), 400, "8 frames")


@pytest.mark.parametrize("how", ["octets", "json", "multipart"])
async def test_video_is_recognised_under_every_content_type(video: bytes, how: str) -> None:
    async with serving_videos() as gateway:
        if how == "json":
            body = json.dumps({"data": base64.b64encode(video).decode()}).encode()
            response = await post_video(gateway, "/classify", body, content_type="application/json")
        elif how == "multipart":
            response = await gateway.client.post(
                "/classify", files={"file": ("clip.mp4", video, "video/mp4")}
            )
        else:
            response = await post_video(gateway, "/classify", video, content_type="application/octet-stream")
        assert ClipClassification.model_validate_json(response.text).model == "tiny-clip"
        assert gateway.counted("ok", "tiny-clip") == 1


async def test_images_go_to_the_model_of_images(video: bytes) -> None:
    image = encode(red_corner(1), "JPEG")
    async with serving_videos() as gateway:
        assert (await post_video(gateway, "/classify", image, content_type="image/jpeg")).json()[
            "model"
        ] == "images"
        # Even under the wrong content type.
        assert (await post_video(gateway, "/classify", image)).json()["model"] == "images"
        assert_problem(
            await post_video(gateway, "/classify?model=tiny-clip", image, content_type="image/jpeg"),
            415,
            "takes clips",
        )
        assert gateway.counted("invalid", "tiny-clip") == 1


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        (b"", 400, "empty"),
        (b"\x00\x00\x00\x20ftypisom" + bytes(40), 422, "clip"),
        (b"\x1a\x45\xdf\xa3" + bytes(40), 415, "EBML"),
        (b"not a video" * 9, 422, "not"),
    ],
)
async def test_body_that_is_not_a_video_is_refused(body: bytes, status: int, word: str) -> None:
    async with serving_videos() as gateway:
        for path in ("/classify", "/segment"):
            assert_problem(await post_video(gateway, path, body), status, word)


@pytest.mark.parametrize("name", UNSUPPORTED)
async def test_other_formats_are_a_415_that_says_what_to_send(name: str) -> None:
    """Of any size: above 4 MiB, what is sent as video is spooled to a file."""
    make, kind, message = UNSUPPORTED[name]
    data = make()
    async with serving_videos() as gateway:
        for path in ("/classify", "/segment"):
            for content_type in (kind, "video/mp4", "application/octet-stream"):
                answer = await post_video(gateway, path, data, content_type=content_type)
                assert_problem(answer, 415, message)
        large = data + bytes(5 * MIB)
        assert_problem(await post_video(gateway, "/classify", large), 415, message)
        assert_problem(await post_video(gateway, "/classify?model=tiny-clip", large), 415)


async def test_an_image_sent_as_video_is_answered_at_any_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    image = encode(red_corner(1), "JPEG")
    async with serving_videos(max_body_bytes=8 * MIB) as gateway:
        for size in (0, 3 * MIB, 5 * MIB):
            response = await post_video(gateway, "/classify", image + bytes(size))
            assert response.status_code == 200, response.text
            assert response.json()["model"] == "images"
        assert_problem(
            await post_video(gateway, "/classify", image + bytes(9 * MIB)), 413, "the server's limit"
        )
        assert gateway.counted("ok", "images") == 3
    assert not os.listdir(tmp_path)  # noqa: PTH208 -- nothing else runs on this event loop


@pytest.mark.parametrize(
    "content_type",
    ["image/jpg", "IMAGE/JPEG", "image/jpeg; charset=binary", "image/png", "Image/*", "image/jpeg;",
     "video/mp4", "application/octet-stream", "Application/Octet-Stream; x=y", "binary/octet-stream"],
)  # fmt: skip
async def test_the_bytes_decide_under_any_spelling_of_the_content_type(content_type: str) -> None:
    async with serving_videos() as gateway:
        response = await post_video(
            gateway, "/classify", encode(red_corner(1), "JPEG"), content_type=content_type
        )
        assert response.status_code == 200, response.text
        assert response.json()["model"] == "images"


@pytest.mark.parametrize("name", ["a.JPG", "no extension", "clip.mp4", "夏.heic", ""])
async def test_file_names_do_not_matter(name: str) -> None:
    async with serving_videos() as gateway:
        files = {"file": (name or "x", encode(red_corner(1), "JPEG"), "text/plain")}
        response = await gateway.client.post("/classify", files=files)
        assert response.status_code == 200, response.text


async def test_video_over_a_limit_is_a_413(video: bytes) -> None:
    async with serving_videos(max_clip_s=3.0) as gateway:
        assert_problem(await post_video(gateway, "/classify", video), 413, "3 s")
    async with serving_videos(max_video_pixels=1000) as gateway:
        assert_problem(await post_video(gateway, "/classify", video), 413, "320 x 192")
    async with serving_videos(max_video_bytes=1000) as gateway:
        assert_problem(await post_video(gateway, "/classify", video), 413, "1000 bytes")
        assert gateway.counted("invalid", "tiny-clip") == 1


async def test_deadline_ends_decoding(video: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    decoding = decode_clip

    def slowly(*arguments: Any) -> Any:
        time.sleep(0.4)
        return decoding(*arguments)

    monkeypatch.setattr(video_input, "decode_clip", slowly)
    async with serving_videos() as gateway:
        assert_problem(await post_video(gateway, "/classify", video, x_slo_ms="300"), 504, "deadline")
        assert gateway.counted("expired", "tiny-clip") == 1


async def test_videos_past_their_deadline_are_not_decoded(
    video: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoding, read = decode_clip, list[float]()

    def slowly(*arguments: Any) -> Any:
        time.sleep(0.5)
        read.append(time.monotonic())
        return decoding(*arguments)

    monkeypatch.setattr(video_input, "decode_clip", slowly)
    async with serving_videos(decode_threads=1) as gateway:
        calls = [post_video(gateway, "/classify", video, x_slo_ms="400") for _ in range(3)]
        assert [answer.status_code for answer in await asyncio.gather(*calls)] == [504] * 3
        await asyncio.sleep(0.7)
    assert len(read) == 1


async def test_spooled_videos_leave_no_files(
    video: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    large = video + (5 * MIB).to_bytes(4, "big") + b"free" + bytes(5 * MIB - 8)
    async with serving_videos() as gateway:
        response = await post_video(gateway, "/classify", large)
        assert response.status_code == 200, response.text
        assert_problem(await post_video(gateway, "/classify", bytes(5 * MIB)), 422, "not an image or a clip")
    assert not os.listdir(tmp_path)  # noqa: PTH208 -- nothing else runs on this event loop


async def test_video_without_a_model_for_videos_is_refused(video: bytes) -> None:
    async with serving_videos(videos=False) as gateway:
        assert_problem(await post_video(gateway, "/classify", video), 415, "takes images")
        assert_problem(await post_video(gateway, "/segment", video), 404)


async def test_transformers_checkpoint_classifies_videos(video: bytes, tmp_path: Path) -> None:
    path = saved(tmp_path / "videomae", settled(videomae()), CLIP)
    runner = huggingface.runner(huggingface.load(str(path)), "fp32", "cpu", 0, None)
    async with serving(runner) as gateway:
        response = await post_video(gateway, "/classify", video)
        answer = ClipClassification.model_validate_json(response.text)
    assert answer.model == "videomae"
    assert len(answer.clip.sampled_s) == runner.card.frames
    assert sum(prediction.score for prediction in answer.predictions) == pytest.approx(1, abs=1e-3)
