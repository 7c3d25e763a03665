"""Thread pools: what runs where, its times, and digests."""

import asyncio
import os
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from foveate.core.errors import BrokenMedia
from foveate.core.model import ModelCard
from foveate.estimation.host_load import HostLoadMonitor
from foveate.gateway.decoding import NICE, SMALL_BYTES, Decoding, digest_of, timed
from tests.support.fake_runner import FakeRunner
from tests.support.media_samples import encode, flat

pytestmark = pytest.mark.anyio
SMALL = encode(flat("RGB", (1, 2, 3)), "PNG")
LARGE = encode(flat("RGB", (1, 2, 3), (2400, 2000)), "PNG")


@pytest.fixture
async def decoding() -> AsyncIterator[Decoding]:
    pools = Decoding(1, HostLoadMonitor())
    yield pools
    pools.close()


def card() -> ModelCard:
    return FakeRunner().card


async def test_each_kind_of_work_has_threads_of_its_own(decoding: Decoding) -> None:
    def thread() -> str:
        return threading.current_thread().name.rpartition("_")[0]

    small, _ = await decoding.decode_image("fake", SMALL, thread)
    large, _ = await decoding.decode_image("fake", LARGE, thread)
    video, _ = await decoding.decode_video("fake", thread)
    rendered, other = await decoding.render("fake", thread), await decoding.run(thread)
    assert len({small, large, video, rendered, other, threading.current_thread().name}) == 6


async def test_a_large_image_does_not_delay_a_small_one(decoding: Decoding) -> None:
    release = threading.Event()
    large = asyncio.create_task(decoding.decode_image("fake", LARGE, lambda: release.wait(20)))
    assert (await asyncio.wait_for(decoding.decode_image("fake", SMALL, lambda: 1), 20))[0] == 1
    assert not large.done()
    release.set()
    assert (await large)[0] is True


async def test_decoded_work_raises_the_estimate_for_its_model_only(decoding: Decoding) -> None:
    assert decoding.decode_wait_s(card()) == decoding.render_wait_s(card()) == 0

    def work() -> int:
        threading.Event().wait(0.05)
        return 7

    result, seconds = await decoding.decode_image("fake", SMALL, work)
    assert result == 7
    assert seconds >= 0.05
    assert decoding.decode_wait_s(card()) >= 0.05
    assert decoding.render_wait_s(card()) == 0
    assert decoding.decode_wait_s(FakeRunner("other").card) == 0
    await decoding.render("fake", work)
    assert decoding.render_wait_s(card()) >= 0.05


async def test_a_failure_is_raised_and_does_not_count_as_pending(decoding: Decoding) -> None:
    def fail() -> None:
        raise ValueError("damaged")

    with pytest.raises(ValueError, match="damaged"):
        await decoding.decode_image("fake", SMALL, fail)
    assert decoding.host_load.pending == 0


@pytest.mark.skipif(sys.platform != "linux", reason="niceness is set for each thread on Linux only")
async def test_decode_threads_have_a_lower_priority(decoding: Decoding) -> None:
    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    before = niceness()
    assert await decoding.run(niceness) == max(before, NICE)
    assert niceness() == before


@pytest.mark.parametrize("size", [0, SMALL_BYTES, SMALL_BYTES + 1, 3 * 2**20 + 5])
async def test_a_file_has_the_digest_of_its_bytes(decoding: Decoding, size: int, tmp_path: Path) -> None:
    data = bytes(number % 251 for number in range(size))
    path = tmp_path / "clip"
    path.write_bytes(data)
    assert await decoding.digest("context", data) == await decoding.digest("context", path)
    assert digest_of("context", data) == await decoding.digest("context", data)


async def test_digests_differ_by_context_and_by_bytes(decoding: Decoding) -> None:
    digests = {await decoding.digest(context, data) for context in ("a", "b") for data in (b"x", b"y")}
    assert len(digests) == 4


def test_timed_reports_wall_and_processor_time() -> None:
    result, wall_s, cpu_s = timed(lambda: threading.Event().wait(0.05))
    assert result is False
    assert wall_s >= 0.05
    assert cpu_s < wall_s


async def test_memory_is_given_back_after_a_large_image_that_does_not_decode(
    decoding: Decoding, monkeypatch: pytest.MonkeyPatch
) -> None:
    trimmed = threading.Event()
    monkeypatch.setattr("foveate.gateway.decoding.trim_heap", trimmed.set)

    def fail() -> None:
        raise BrokenMedia("the image/png data is truncated or damaged")

    with pytest.raises(BrokenMedia):
        await decoding.decode_image("fake", LARGE, fail)
    assert await asyncio.to_thread(trimmed.wait, 20)


async def test_large_images_wait_for_their_share_of_memory() -> None:
    """The image of 4.8 million pixels counts 48 MB, for decoding as for rendering."""
    decoding, release = Decoding(2, HostLoadMonitor(), 60_000_000), threading.Event()
    try:
        rendering = asyncio.create_task(decoding.render("fake", lambda: release.wait(20), 4_800_000))
        await asyncio.sleep(0.01)
        large = asyncio.create_task(decoding.decode_image("fake", LARGE, lambda: 1))
        small = await asyncio.wait_for(decoding.decode_image("fake", SMALL, lambda: 2), 20)
        assert small[0] == 2
        assert not large.done()
        release.set()
        assert (await asyncio.wait_for(large, 20))[0] == 1
        assert await rendering
        assert decoding.memory.free == 60_000_000
    finally:
        release.set()
        decoding.close()
