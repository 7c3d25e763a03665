"""The real server over real sockets: bad input, disconnects, concurrent requests, shutdown."""

import asyncio
import gc
import json
import multiprocessing
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx
import numpy as np
import pytest

from foveate.cluster.local import LocalCluster
from foveate.core.metrics import Metrics
from foveate.core.model import InputSpec
from foveate.core.outcome import Result
from foveate.core.plan import Plan
from foveate.core.settings import Settings
from foveate.gateway.app import create_app
from foveate.gateway.server import SAME_SIGNAL_S, freeze_gc_heap, server
from tests.integration.conftest import TIMEOUT_S, RunningServer, Serve, listen
from tests.support.fake_runner import FakeRunner
from tests.support.media_samples import encode, png, scene

pytestmark = pytest.mark.anyio
JPEG = {"content-type": "image/jpeg"}
POST = b"POST /classify HTTP/1.1\r\nhost: x\r\ncontent-type: image/jpeg\r\n"


class NumberRunner(FakeRunner):
    """Answers with a score that identifies the item: the number in its bytes, divided by 1,000."""

    def run(self, batch: list[Any], plan: Plan) -> list[Result | Exception]:
        super().run(batch, plan)
        numbers = [int(bytes(item).rpartition(b"#")[2]) for item in batch]
        return [Result(np.array([n / 1000, 0], np.float32), 5, 12, 0.5) for n in numbers]


class RawConnection:
    """One TCP connection, on which the test writes bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        """Write bytes and wait until they are sent."""
        self.writer.write(data)
        await self.writer.drain()

    async def post(self, body: bytes, announced: int | None = None, name: str = "raw") -> None:
        """Send a request. announced: its content-length; None: the length of the body."""
        length = len(body) if announced is None else announced
        await self.send(POST + f"x-request-id: {name}\r\ncontent-length: {length}\r\n\r\n".encode() + body)

    async def response(self) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the next response."""
        async with asyncio.timeout(TIMEOUT_S):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
            first, *lines = head.strip().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            body = await self.reader.readexactly(int(headers.get("content-length", 0)))
        return int(first.split()[1]), headers, body

    async def is_closed(self) -> bool:
        """Whether the server closes the connection."""
        async with asyncio.timeout(TIMEOUT_S):
            return await self.reader.read() == b""

    async def close(self) -> None:
        """Close the connection."""
        self.writer.close()
        with suppress(ConnectionError):
            await self.writer.wait_closed()


@asynccontextmanager
async def connection(served: RunningServer) -> AsyncIterator[RawConnection]:
    raw = RawConnection(*await asyncio.open_connection("127.0.0.1", served.port))
    try:
        yield raw
    finally:
        await raw.close()


async def post(client: httpx.AsyncClient, body: Any = b"image", **headers: str) -> httpx.Response:
    return await client.post("/classify", content=body, headers=JPEG | headers)


def assert_problem(response: httpx.Response, status: int) -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["status"] == status
    assert "Traceback" not in response.text


async def held_request(
    served: RunningServer, client: httpx.AsyncClient, body: bytes = b"first"
) -> asyncio.Task[httpx.Response]:
    """A request that is running and does not end until the runner's gate is set."""
    served.runner.gate.clear()
    first = asyncio.create_task(post(client, body))
    await served.entered()
    return first


async def test_connection_is_kept_alive(serve: Serve) -> None:
    served = serve()
    async with connection(served) as raw:
        for n in range(20):
            await raw.post(b"image %d" % n)
            status, headers, body = await raw.response()
            assert status == 200
            assert headers.get("connection") != "close"
            assert [p["label"] for p in json.loads(body)["predictions"]] == ["yes", "no"]
    assert served.counted() == {"ok": 20}
    served.assert_empty()


async def test_images_are_decoded_and_other_bytes_are_refused(serve: Serve) -> None:
    served = serve(FakeRunner(spec=InputSpec()))
    jpeg = encode(scene(64, 48), "JPEG")
    cases: list[tuple[bytes, str, int]] = [
        (jpeg, "image/jpeg", 200),
        (encode(scene(64, 48), "PNG"), "image/jpeg", 200),  # the bytes decide, not the content type
        (jpeg[: len(jpeg) // 2], "image/jpeg", 422),
        (jpeg[:4], "image/jpeg", 422),
        (b"\0" * 100, "image/png", 422),
        (png(60000, 60000), "image/png", 413),
        (b"<svg></svg>", "image/svg+xml", 415),
        (jpeg, "text/plain", 415),
        (jpeg, "audio/mpeg", 415),
        (b"%PDF-1.7", "image/jpeg", 415),
        (b"", "image/jpeg", 400),
        (b'{"data": 5}', "application/json", 400),
    ]
    async with served.client() as client:
        for body, kind, status in cases:
            response = await client.post("/classify", content=body, headers={"content-type": kind})
            assert response.status_code == status, (body[:20], kind, response.text)
            if status != 200:
                assert_problem(response, status)
        assert (await post(client, jpeg)).status_code == 200
    assert served.counted() == {"ok": 3, "invalid": len(cases) - 2}
    assert [item.shape for batch in served.runner.batches for item in batch] == [(32, 32, 3)] * 3
    served.assert_empty()


@pytest.mark.parametrize("expect", [b"", b"expect: 100-continue\r\n"])
async def test_content_length_over_the_limit_is_refused_before_the_body(serve: Serve, expect: bytes) -> None:
    served = serve(max_body_bytes=1000)
    async with connection(served) as raw:
        await raw.send(POST + expect + b"content-length: 1001\r\n\r\n")
        status, _, body = await raw.response()
        assert status == 413
        assert "1000 bytes" in json.loads(body)["detail"]
    async with served.client() as client:
        assert (await post(client, b"x" * 1000)).status_code == 200
    assert served.counted() == {"invalid": 1, "ok": 1}
    served.assert_empty()


async def test_client_that_expects_100_continue_sends_its_body_after_it(serve: Serve) -> None:
    form = b"--b\r\ncontent-disposition: form-data; name=file\r\n\r\nimage\r\n--b--"
    head = POST.replace(b"image/jpeg", b"multipart/form-data; boundary=b") + b"expect: 100-continue\r\n"
    served = serve()
    async with connection(served) as raw:
        await raw.send(head + b"content-length: %d\r\n\r\n" % len(form))
        assert (await raw.response())[0] == 100
        await raw.send(form)
        assert (await raw.response())[0] == 200
    assert served.runner.batches == [[b"image"]]
    served.assert_empty()


async def test_chunked_body_over_the_limit_is_refused(serve: Serve) -> None:
    served = serve(max_body_bytes=1000)
    chunk = b"64\r\n" + b"x" * 100 + b"\r\n"
    async with connection(served) as raw:
        await raw.send(POST + b"transfer-encoding: chunked\r\n\r\n" + chunk * 11)
        status, _, _ = await raw.response()  # although the body never ends
        assert status == 413
    async with connection(served) as raw:
        await raw.send(POST + b"transfer-encoding: chunked\r\n\r\n" + chunk * 10 + b"0\r\n\r\n")
        assert (await raw.response())[0] == 200
    assert served.counted() == {"invalid": 1, "ok": 1}
    served.assert_empty()


@pytest.mark.parametrize(
    "data",
    [
        b"HELLO\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
        b"POST /classify HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n",
        b"POST /classify HTTP/1.1\r\nhost: x\r\ncontent-length: ten\r\n\r\n",
        b"POST /classify HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    ],
)
async def test_invalid_http_closes_only_its_own_connection(serve: Serve, data: bytes) -> None:
    served = serve()
    async with connection(served) as raw:
        await raw.send(data)
        assert (await raw.response())[0] == 400
        assert await raw.is_closed()
    async with served.client() as client:
        assert (await post(client)).status_code == 200
    served.assert_empty()


async def test_request_of_a_client_that_disconnects_while_waiting_never_runs(serve: Serve) -> None:
    served = serve()
    async with served.client() as client:
        first = await held_request(served, client)
        async with connection(served) as raw:
            await raw.post(b"gone")
            await served.events.wait_for("submitted", 2)
            assert served.gauge("foveate_waiting") == 1
            assert served.gauge("foveate_waiting_bytes") == 4
        await served.events.wait_for("ended", 1)
        await served.wait_for_zero("foveate_waiting")
        assert served.gauge("foveate_waiting_bytes") == 0
        served.runner.gate.set()
        assert (await first).status_code == 200
        assert (await post(client, b"next")).status_code == 200
    assert served.runner.batches == [[b"first"], [b"next"]]
    assert served.counted() == {"ok": 2, "cancelled": 1}
    served.assert_empty()


async def test_client_that_disconnects_during_the_run_is_counted_once(serve: Serve) -> None:
    served = serve()
    async with served.client() as client:
        served.runner.gate.clear()
        async with connection(served) as raw:
            await raw.post(b"gone")
            await served.entered()
            assert served.gauge("foveate_running") == 1
        await served.events.wait_for("ended", 1)
        assert (served.limiter.items, served.limiter.bytes) == (0, 0)
        served.runner.gate.set()
        assert (await post(client, b"next")).status_code == 200
    assert served.counted() == {"ok": 1, "cancelled": 1}
    served.assert_empty()


async def test_incomplete_body_is_cancelled(serve: Serve) -> None:
    served = serve()
    for count, sent in enumerate((b"", b"x" * 500, b"x" * 200_000), start=1):
        async with connection(served) as raw:
            await raw.post(sent, announced=300_000)
            await served.events.wait_for("begun", count)
    await served.events.wait_for("ended", 3)
    assert served.counted() == {"cancelled": 3}
    assert served.runner.batches == []
    served.assert_empty()


async def test_many_disconnects_do_not_affect_later_requests(serve: Serve) -> None:
    served, clients = serve(queue_items=2000), 1000
    at_once = asyncio.Semaphore(50)

    async def connect_and_disconnect(n: int) -> None:
        """Half of the clients disconnect in the queue, a quarter within the body, a quarter at any time."""
        async with at_once, connection(served) as raw:
            await raw.post(b"gone", announced=100 if n % 4 == 0 else None, name=f"id-{n}")
            if n % 4 >= 2:
                await served.events.wait_for(f"submitted id-{n}", 1)
            if n % 4 == 3:
                raw.writer.transport.abort()

    async with served.client() as client:
        first = await held_request(served, client)
        await asyncio.gather(*(connect_and_disconnect(n) for n in range(clients)))
        await served.events.wait_for("ended", clients)
        await served.wait_for_zero("foveate_waiting")
        assert served.limiter.items == 1
        served.runner.gate.set()
        assert (await first).status_code == 200
        answers = await asyncio.gather(*(post(client, b"after") for _ in range(20)))
    assert [response.status_code for response in answers] == [200] * 20
    assert {item for batch in served.runner.batches for item in batch} == {b"first", b"after"}
    assert served.counted() == {"ok": 21, "cancelled": clients}
    served.assert_empty()
    assert served.gauge("foveate_running") == 0


async def test_concurrent_requests_each_get_their_own_answer(serve: Serve) -> None:
    served, count = serve(NumberRunner(max_batch=8)), 200
    async with served.client(limits=httpx.Limits(max_connections=count)) as client:
        first = await held_request(served, client, b"#0")

        async def ask(n: int) -> None:
            # On a busy machine, the policy would leave full for the others.
            plan = {"x-plan": "evit:0.5"} if n % 3 == 0 else {"x-min-quality": "1"}
            response = await post(client, b"#%d" % n, **plan, **{"x-request-id": f"id-{n}"})
            assert response.status_code == 200, response.text
            assert response.headers["x-request-id"] == response.json()["id"] == f"id-{n}"
            assert response.json()["predictions"][0]["score"] == pytest.approx(n / 1000, abs=1e-5)
            assert response.json()["compute"]["rung"] == ("full" if n % 3 else "evit:0.5")

        others = [asyncio.create_task(ask(n)) for n in range(1, count)]
        await served.events.wait_for("submitted", count)
        served.runner.gate.set()
        await asyncio.gather(first, *others)
    assert served.counted() == {"ok": count}
    assert len(served.runner.batches) < count / 4, "requests are batched"
    served.assert_empty()


async def test_every_request_ends_in_exactly_one_outcome(serve: Serve) -> None:
    served = serve(queue_items=2, max_body_bytes=1000)
    async with served.client() as client:
        first = await held_request(served, client)
        late = await post(client, **{"x-slo-ms": "20"})
        waiting = [asyncio.create_task(post(client)), asyncio.create_task(post(client, b"poison"))]
        await served.events.wait_for("submitted", 4)
        bad: tuple[dict[str, str], ...] = (
            {},
            {"x-plan": "warp:9"},
            {"content-type": "text/plain"},
            {"x-slo-ms": "never"},
        )
        answers = [late, *[await post(client, **headers) for headers in bad]]
        answers.append(await post(client, b"x" * 1001))
        async with connection(served) as raw:
            await raw.post(b"gone", announced=10)
            await served.events.wait_for("begun", 10)
        await served.events.wait_for("ended", 7)
        served.runner.gate.set()
        answers += await asyncio.gather(first, *waiting)
        text = (await client.get("/metrics")).text
    assert [answer.status_code for answer in answers] == [504, 429, 400, 415, 400, 413, 200, 200, 200]
    assert served.counted() == {"expired": 1, "refused": 1, "invalid": 4, "cancelled": 1, "ok": 3}
    total = [line for line in text.splitlines() if line.startswith("foveate_requests_total{")]
    assert sum(float(line.rpartition(" ")[2]) for line in total) == len(answers) + 1
    served.assert_empty()


async def test_drain_finishes_admitted_requests_and_refuses_new_ones(serve: Serve) -> None:
    served = serve()
    async with served.client() as client, served.client() as kept, connection(served) as old:
        first = await held_request(served, client)
        waiting = asyncio.create_task(post(client, b"waiting"))
        await served.events.wait_for("submitted", 2)
        assert (await kept.get("/readyz")).status_code == 200
        await old.post(b"")
        assert (await old.response())[0] == 400
        served.sigterm()
        await served.events.wait_for("draining", 1)
        assert (await kept.get("/readyz")).status_code == 503
        assert (await kept.get("/livez")).status_code == 200
        await old.post(b"new on an old connection")
        status, headers, _ = await old.response()
        assert status == 503
        assert int(headers["retry-after"]) >= 1
        async with served.client() as new:
            refused = await post(new, b"new")
            assert_problem(refused, 503)
            assert int(refused.headers["retry-after"]) >= 1
            assert refused.headers["connection"] == "close"
        assert not first.done()
        served.runner.gate.set()
        assert [(await task).status_code for task in (first, waiting)] == [200, 200]
    assert await asyncio.to_thread(served.ended)
    assert served.runner.batches == [[b"first"], [b"waiting"]]
    assert served.counted() == {"ok": 2, "invalid": 1, "refused": 2}
    served.assert_empty()
    with pytest.raises(OSError):
        await asyncio.open_connection("127.0.0.1", served.port)


async def test_drain_timeout_answers_503(serve: Serve) -> None:
    served = serve(drain_timeout_s=0.05)
    async with served.client() as client:
        stuck = await held_request(served, client)
        waiting = asyncio.create_task(post(client, b"waiting"))
        await served.events.wait_for("submitted", 2)
        served.sigterm()
        answers = await asyncio.gather(stuck, waiting)
    assert await asyncio.to_thread(served.ended)
    assert sum(served.counted().values()) == 2
    assert [response.status_code for response in answers] == [503, 503]


def serve_in_a_process(listening: socket.socket, gate: Any, entered: Any) -> None:
    """The child process of the next test: `foveate serve` with a fake model."""
    runner = FakeRunner()
    runner.gate, runner.entered = gate, entered
    metrics = Metrics()
    cluster = LocalCluster([lambda: runner], metrics)
    settings = Settings()
    server(create_app(cluster, settings, metrics), cluster, settings).run([listening])


async def test_sigterm_ends_a_process_with_exit_code_0_after_its_last_answer() -> None:
    context = multiprocessing.get_context("spawn")
    gate, entered, listening = context.Event(), context.Semaphore(0), listen()
    port = listening.getsockname()[1]
    process = context.Process(target=serve_in_a_process, args=(listening, gate, entered), daemon=True)
    process.start()
    listening.close()
    try:
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", timeout=TIMEOUT_S, trust_env=False
        ) as client:
            first = asyncio.create_task(post(client))
            assert await asyncio.to_thread(entered.acquire, timeout=TIMEOUT_S)
            assert process.pid is not None
            process.terminate()
            async with asyncio.timeout(TIMEOUT_S):
                while (await client.get("/readyz")).status_code == 200:
                    pass  # the signal is on its way; each response is a round trip, so the loop is not busy
            assert (await post(client)).status_code == 503
            gate.set()
            assert (await first).status_code == 200
        await asyncio.to_thread(process.join, TIMEOUT_S)
        assert process.exitcode == 0
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.1", port)
    finally:
        gate.set()
        process.kill()
        process.join()


@pytest.mark.parametrize("head", [b"a: b\r\n" * 200_000, b"a: " + b"b" * 1_000_000], ids=["many", "long"])
async def test_request_head_over_the_limit_is_a_431(serve: Serve, head: bytes) -> None:
    served = serve()
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(b"POST /classify HTTP/1.1\r\nhost: x\r\n" + head)
    status_line = await asyncio.wait_for(reader.readline(), TIMEOUT_S)
    assert status_line.startswith(b"HTTP/1.1 431")
    writer.close()
    async with served.client() as client:
        assert (await post(client)).status_code == 200


async def test_second_signal_answers_waiting_requests_and_stops_at_once(serve: Serve) -> None:
    served = serve(drain_timeout_s=60)
    async with served.client() as client:
        stuck = await held_request(served, client)
        served.sigterm()
        await served.events.wait_for("draining", 1)
        await asyncio.sleep(1.5 * SAME_SIGNAL_S)
        served.sigterm()
        assert (await asyncio.wait_for(stuck, TIMEOUT_S)).status_code == 503
    assert await asyncio.to_thread(served.ended)
    assert served.server.finished is False


async def test_large_bodies_do_not_count_as_request_heads(serve: Serve) -> None:
    served = serve()
    async with served.client() as client:
        for _ in range(3):
            assert (await post(client, b"x" * 300_000)).status_code == 200


def test_startup_heap_is_excluded_from_garbage_collection() -> None:
    """A full collection stops forwards too, so it has to be short."""
    objects = len(gc.get_objects())
    freeze_gc_heap()
    try:
        assert gc.get_freeze_count() > 0.9 * objects
        assert len(gc.get_objects()) < 0.1 * objects
    finally:
        gc.unfreeze()
