"""JSON bodies with the URL of the media, on the task routes, from a server on this machine."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest

from foveate.core.model import InputSpec
from tests.support.fake_runner import FakeRunner
from tests.support.gateway import Gateway, assert_problem, serving, serving_fakes
from tests.support.http_connections import WAIT_S, listening
from tests.support.media_samples import encode, flat
from tests.support.remote_files import Answer, FileServer, file_answer, file_server, redirect
from tests.support.video_gateway import serving_videos
from tests.support.video_samples import clip

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("one_thread")]

FILE = bytes(range(256))


async def forever(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 4000\r\n\r\na")
    await asyncio.Event().wait()


@asynccontextmanager
async def served(*runners: FakeRunner, answer: Answer, **settings: Any) -> AsyncIterator[Any]:
    """A gateway that may fetch from a server with one file, the file's URL, and that server."""
    async with file_server({"/a": answer}) as files:
        settings["url_private_hosts"] = (f"127.0.0.1:{files.port}",)
        async with serving(*(runners or (FakeRunner(),)), **settings) as gateway:
            yield gateway, f"http://127.0.0.1:{files.port}/a", files


async def ask(
    gateway: Gateway[Any], path: str = "/classify", headers: Any = None, **members: Any
) -> httpx.Response:
    return await gateway.client.post(path, json=members, headers=headers)


async def test_the_file_at_a_url_is_answered_as_the_same_bytes_are() -> None:
    runner = FakeRunner()
    runner.card = replace(runner.card, weights="w1")
    async with served(runner, answer=file_answer(FILE)) as (gateway, url, files):
        first = await ask(gateway, url=url)
        assert first.status_code == 200, first.text
        again = await ask(gateway, url=url)
        raw = await gateway.post("/classify", FILE)
        assert [each.headers["x-cache"] for each in (first, again, raw)] == ["miss", "hit", "hit"]
        assert len(files.heads) == 2, "a URL is fetched anew: its file may have changed"
        assert gateway.metric("foveate_url_fetches_total", outcome="ok") == 2
        assert gateway.app.state.limiter.bytes == 0
    assert runner.batches == [[FILE]]


async def test_data_urls_are_answered_without_a_setting() -> None:
    async with serving_fakes() as gateway:
        url = f"data:image/png;base64,{base64.b64encode(FILE).decode()}"
        assert (await ask(gateway, url=url, top_k=1)).status_code == 200
        assert_problem(await ask(gateway, url=url[:-1]), 400, "base64")
        assert_problem(await ask(gateway, url="data:,"), 400, "empty")
        assert gateway.runner.batches == [[FILE]]


async def test_http_urls_are_refused_without_a_setting() -> None:
    async with serving_fakes() as gateway:
        assert_problem(
            await ask(gateway, url="https://example.org/a.jpg"), 400, "FOVEATE_URL_HOSTS is not set"
        )
        assert_problem(await ask(gateway, url="file:///etc/passwd"), 400, "must begin with http")
        assert gateway.counted("invalid") == 2
        assert gateway.metric("foveate_url_fetches_total", outcome="refused") == 2


async def test_bad_options_are_refused_before_a_fetch() -> None:
    async with served(answer=file_answer(FILE)) as (gateway, url, files):
        assert_problem(await ask(gateway, url=url, top_k=0), 400, "top_k")
        assert_problem(await ask(gateway, url=url, size=0), 400, "no option 'size'")
        assert not files.heads


@pytest.mark.parametrize(
    ("answer", "status", "words"),
    [
        (file_answer(b"", status="403 Forbidden"), 400, "status 403"),
        (file_answer(bytes(5000)), 413, "the file at the URL is over the server's limit"),
        (redirect("http://127.0.0.1:1/"), 400, "redirects to a target that is refused"),
        (redirect("http://169.254.169.254/"), 400, "redirects to a target that is refused"),
        (file_answer(FILE, "content-encoding: gzip"), 400, "compressed"),
        (forever, 400, "did not arrive within 0.3 s"),
    ],
)
async def test_failures_are_problems_and_leave_nothing_behind(
    answer: Answer, status: int, words: str
) -> None:
    limits = {"max_body_bytes": 4000, "max_video_bytes": 4500, "url_timeout_s": 0.3}
    async with served(answer=answer, **limits) as (gateway, url, _):
        assert_problem(await ask(gateway, url=url), status, words)
        assert gateway.counted("invalid") == 1
        assert gateway.app.state.limiter.items == gateway.app.state.limiter.bytes == 0
        assert not gateway.runner.batches


async def test_the_deadline_bounds_the_fetch() -> None:
    async with served(answer=forever) as (gateway, url, files):
        assert_problem(await ask(gateway, headers={"x-slo-ms": "200"}, url=url), 504)
        await asyncio.wait_for(files.closed.wait(), WAIT_S)
        assert gateway.counted("expired") == 1


async def test_a_client_that_leaves_ends_the_fetch() -> None:
    async with (
        file_server({"/a": forever}) as files,
        listening(url_private_hosts=(f"127.0.0.1:{files.port}",)) as listener,
    ):
        body = json.dumps({"url": f"http://127.0.0.1:{files.port}/a"}).encode()
        head = b"POST /classify HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
        async with listener.connect() as connection:
            await connection.send(head + b"content-length: %d\r\n\r\n" % len(body) + body)
            while not files.heads:
                await asyncio.sleep(0.01)
        await asyncio.wait_for(files.closed.wait(), WAIT_S)
        assert listener.bodies == []


async def test_an_image_of_too_many_pixels_is_refused_by_the_decoder() -> None:
    bomb = encode(flat("1", 0, (3000, 3000)), "PNG")
    async with served(FakeRunner(spec=InputSpec()), answer=file_answer(bomb), max_pixels=10**6) as (
        gateway,
        url,
        _,
    ):
        assert len(bomb) < 10_000
        assert_problem(await ask(gateway, url=url), 413, "3000 x 3000 pixels")


async def test_what_is_no_image_is_refused_by_the_decoder() -> None:
    page = file_answer(b"<html>" + bytes(100), "content-type: image/png")
    async with served(FakeRunner(spec=InputSpec()), answer=page) as (gateway, url, _):
        assert_problem(await ask(gateway, url=url), 422)


async def clip_server(files: FileServer, url_tail: str, **settings: Any) -> httpx.Response:
    """The answer to a clip at a URL by a server of clip models."""
    async with serving_videos(url_private_hosts=(f"127.0.0.1:{files.port}",), **settings) as gateway:
        return await ask(gateway, "/classify", url=f"http://127.0.0.1:{files.port}{url_tail}")


@pytest.mark.parametrize("padding", [0, 5 * 2**20])
async def test_clips_at_urls_are_answered_by_models_of_clips(padding: int) -> None:
    """With the limit for clips. A large one is a file, which the decoder reads."""
    free = (8 + padding).to_bytes(4, "big") + b"free" + bytes(padding) if padding else b""
    async with file_server({"/a": file_answer(clip(count=8) + free)}) as files:
        answer = await clip_server(files, "/a", max_body_bytes=2**20)
    assert answer.status_code == 200, answer.text
    assert "over_time" in answer.json()
