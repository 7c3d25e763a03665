"""Which images count as large, and that large images do not delay small ones."""

import asyncio
import io
import threading
from typing import Any

import httpx
import pytest
from PIL import Image

from foveate.cluster.local import LocalCluster
from foveate.core.metrics import Metrics
from foveate.core.model import InputSpec
from foveate.core.settings import Settings
from foveate.gateway.app import create_app
from foveate.gateway.media.image import decode_image
from foveate.gateway.media.image_size import decoded_bytes, is_large, working_bytes
from tests.support.fake_runner import FakeRunner

LARGE, SMALL = (2400, 2000), (640, 480)


def encoded(kind: str, size: tuple[int, int]) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, (9, 9, 9)).save(out, kind)
    return out.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "WEBP"])
def test_the_size_is_read_from_the_header(kind: str) -> None:
    assert is_large(encoded(kind, LARGE))
    assert not is_large(encoded(kind, SMALL))


def test_jpeg_is_never_large_and_tiff_always_is() -> None:
    assert not is_large(encoded("JPEG", LARGE))
    assert is_large(encoded("TIFF", SMALL))


@pytest.mark.parametrize(
    "data", [b"", b"RIFF", b"RIFF....WEBP", b"GIF89a", b"BM", b"\x89PNG\r\n\x1a\n", b"x" * 99]
)
def test_truncated_headers_are_not_large(data: bytes) -> None:
    assert not is_large(data)


@pytest.mark.anyio
async def test_a_large_image_does_not_delay_a_small_one(monkeypatch: pytest.MonkeyPatch) -> None:
    released, started = threading.Event(), threading.Event()

    def blocking(data: bytes, *rest: Any) -> Any:
        if is_large(data):
            started.set()
            assert released.wait(20)
        return decode_image(data, *rest)

    monkeypatch.setattr("foveate.gateway.routes.image_input.decode_image", blocking)
    metrics = Metrics()
    cluster = LocalCluster([lambda: FakeRunner(spec=InputSpec())], metrics)
    app = create_app(cluster, Settings(decode_threads=1), metrics)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://t") as client,
    ):
        large = [
            asyncio.create_task(client.post("/classify", content=encoded("PNG", LARGE))) for _ in range(3)
        ]
        assert await asyncio.to_thread(started.wait, 20)
        small = await asyncio.wait_for(client.post("/classify", content=encoded("PNG", SMALL)), 20)
        assert small.status_code == 200
        released.set()
        assert [(await task).status_code for task in large] == [200, 200, 200]


def test_memory_follows_from_the_size_in_the_header_and_is_bounded_by_the_pixel_limit() -> None:
    assert decoded_bytes(encoded("PNG", LARGE), 10**8) == 10 * 2400 * 2000
    assert decoded_bytes(encoded("PNG", LARGE), 5_000_000) <= 10 * 5_000_000
    assert decoded_bytes(encoded("PNG", SMALL), 10**8) == 0
    assert decoded_bytes(encoded("TIFF", SMALL), 10**8) == 10 * 10**8, "a TIFF may have any size"
    assert decoded_bytes(encoded("JPEG", LARGE), 10**8) == 0
    assert (working_bytes(10**6), working_bytes(10**7)) == (0, 10**8)
