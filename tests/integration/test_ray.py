"""A real Ray on this machine: workers that die, are replaced, upgraded, added and removed under load."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

pytest.importorskip("ray", reason="Ray is not installed: pip install 'foveate[ray]'")

import ray
from ray import serve
from ray.serve.schema import ApplicationStatus

from foveate.cluster.ray.transport import RayTransport
from foveate.cluster.remote import RemoteCluster
from foveate.core.request import Request
from foveate.core.settings import Settings
from foveate.estimation.host_load import HostLoadMonitor
from foveate.gateway.cli import ray_cluster, serve_ray
from tests.e2e.serving import free_port
from tests.support import chat_models
from tests.support.chat_gateway import text, user
from tests.support.media_samples import encode, scene
from tests.support.ray_models import CommandRunner, load_chat, load_checkpoint

pytestmark = pytest.mark.anyio
TIMEOUT_S = 60.0
PNG = encode(scene(64, 64), "PNG")
SETTINGS = Settings(
    port=free_port(), cluster="ray", models=("fake",), cache_bytes=0, replica_cpus=0.1, gateway_cpus=0.1
)


class RayApplication:
    """Deploys the application and connects to it."""

    def deploy(self, startup_s: float = 0.0, **settings: Any) -> None:
        assert settings.keys() <= Settings.model_fields.keys()
        serve_ray.deploy(SETTINGS.model_copy(update=settings), [partial(CommandRunner, startup_s=startup_s)])

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{SETTINGS.port}",
            timeout=TIMEOUT_S,
            trust_env=False,
            limits=httpx.Limits(max_connections=64),
        )

    @property
    def workers(self) -> int:
        """The number of running replicas of the model."""
        deployment = serve.status().applications[serve_ray.NAME].deployments["fake"]
        return sum(count for state, count in deployment.replica_states.items() if state == "RUNNING")

    async def wait_for_workers(self, workers: int) -> None:
        until = time.monotonic() + TIMEOUT_S
        while self.workers != workers:
            assert time.monotonic() < until, serve.status()
            await asyncio.sleep(0.2)


@pytest.fixture(scope="module")
def application() -> Iterator[RayApplication]:
    ray_cluster.start(SETTINGS)
    yield RayApplication()
    serve.shutdown()  # type: ignore[no-untyped-call]
    ray.shutdown()


async def send(client: httpx.AsyncClient, command: bytes, **headers: str) -> httpx.Response:
    return await client.post("/classify", content=command, headers={"content-type": "image/jpeg"} | headers)


async def worker_pid(client: httpx.AsyncClient) -> int:
    """The process id of the worker that answers the next request."""
    pid: int = (await send(client, b"pid")).json()["compute"]["tokens"]
    return pid


async def send_until(stopping: asyncio.Event, client: httpx.AsyncClient, command: bytes) -> list[int]:
    """Send one request after the other. Returns the status codes."""
    statuses = []
    while not stopping.is_set():
        statuses.append((await send(client, command)).status_code)
    return statuses


async def test_several_workers_answer_all_requests(application: RayApplication) -> None:
    application.deploy(replicas=2)
    async with application.client() as client:
        responses = await asyncio.gather(*(send(client, b"sleep 0.01") for _ in range(200)))
    assert {response.status_code for response in responses} == {200}
    pids = {response.json()["compute"]["tokens"] for response in responses}
    assert len(pids) == 2 and os.getpid() not in pids


async def test_several_large_media_are_answered(application: RayApplication) -> None:
    async with application.client() as client:
        large = b"pid" + b" " * 6_000_000
        responses = await asyncio.gather(*(send(client, large) for _ in range(4)))
    assert [response.status_code for response in responses] == [200] * 4


async def test_the_request_id_header_is_sent_once(application: RayApplication) -> None:
    async with application.client() as client:
        response = await send(client, b"pid", **{"x-request-id": "abc"})
        assert response.headers.get_list("x-request-id") == ["abc"]
        assert response.json()["id"] == "abc"
        response = await send(client, b"pid")
        assert response.headers.get_list("x-request-id") == [response.json()["id"]]


async def test_requests_of_a_dead_worker_run_on_another_worker(application: RayApplication) -> None:
    application.deploy(replicas=2)
    async with application.client() as client:
        tasks = [asyncio.create_task(send(client, b"sleep 0.5")) for _ in range(12)]
        await asyncio.sleep(0.2)
        died = await send(client, b"die")
        responses = await asyncio.gather(*tasks)
        # The request kills the second worker that it is retried on too, and then fails.
        assert died.status_code == 503 and int(died.headers["retry-after"]) >= 1
        assert died.json()["title"] == "No worker"
    assert {response.status_code for response in responses} <= {200, 503}
    await application.wait_for_workers(2)
    async with application.client() as client:
        assert (await send(client, b"pid")).status_code == 200


async def test_one_dead_worker_fails_no_request(application: RayApplication) -> None:
    application.deploy(replicas=2)
    await application.wait_for_workers(2)
    async with application.client() as client:
        pid = await worker_pid(client)
        tasks = [asyncio.create_task(send(client, b"sleep 0.2")) for _ in range(30)]
        await asyncio.sleep(0.3)
        os.kill(pid, 9)
        responses = await asyncio.gather(*tasks)
    assert {response.status_code for response in responses} == {200}
    await application.wait_for_workers(2)


async def test_deadlines_hold_across_processes(application: RayApplication) -> None:
    application.deploy(replicas=1)
    await application.wait_for_workers(1)
    async with application.client() as client:
        running = [asyncio.create_task(send(client, b"sleep 1")) for _ in range(2)]
        await asyncio.sleep(0.3)
        began = time.monotonic()
        late = await send(client, b"pid", **{"x-slo-ms": "300"})
        took_s = time.monotonic() - began
        await asyncio.gather(*running)
    assert late.status_code in (429, 504)
    assert took_s < 0.9


async def test_a_request_cancelled_in_the_queue_of_a_worker_is_not_run(application: RayApplication) -> None:
    application.deploy(replicas=1)
    await application.wait_for_workers(1)
    transport = RayTransport(serve.get_deployment_handle("fake", serve_ray.NAME))
    cluster = await RemoteCluster.connect([transport], HostLoadMonitor())
    running = asyncio.create_task(cluster.submit(Request("running", "fake", b"sleep 1.5", 9)))
    await asyncio.sleep(0.3)
    cancelled = asyncio.create_task(cluster.submit(Request("cancelled", "fake", b"die", 3)))
    await asyncio.sleep(0.3)
    cancelled.cancel()
    pid = (await running).result.tokens
    after = await cluster.submit(Request("after", "fake", b"pid", 3))
    assert after.result.tokens == pid, "the worker has not run the cancelled request"
    await cluster.close()


async def test_an_upgrade_under_load_fails_no_request(application: RayApplication) -> None:
    application.deploy(replicas=2)
    await application.wait_for_workers(2)
    stopping = asyncio.Event()
    async with application.client() as client:
        before = {await worker_pid(client) for _ in range(20)}
        senders = [asyncio.create_task(send_until(stopping, client, b"sleep 0.02")) for _ in range(8)]
        await asyncio.to_thread(application.deploy, replicas=2, default_deadline_s=0.9)
        await asyncio.sleep(2)
        stopping.set()
        statuses = [status for sent in await asyncio.gather(*senders) for status in sent]
        after = {await worker_pid(client) for _ in range(20)}
    assert len(statuses) > 50 and set(statuses) == {200}
    assert not before & after


async def test_metrics_are_the_sum_over_all_processes_and_survive_them(application: RayApplication) -> None:
    application.deploy(replicas=2, gateways=2)
    await application.wait_for_workers(2)

    async def metric(client: httpx.AsyncClient, name: str) -> float:
        lines = (await client.get("/metrics")).text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))

    async def wait_for(client: httpx.AsyncClient, name: str, at_least: float) -> float:
        until = time.monotonic() + TIMEOUT_S
        while (value := await metric(client, name)) < at_least:
            assert time.monotonic() < until, value
            await asyncio.sleep(0.2)
        return value

    async with application.client() as client:
        requests = await metric(client, "foveate_requests_total")
        ran = await metric(client, "foveate_batch_size_sum")
        responses = await asyncio.gather(*(send(client, b"pid") for _ in range(60)))
        assert await wait_for(client, "foveate_requests_total", requests + 60) == requests + 60
        total = await wait_for(client, "foveate_batch_size_sum", ran + 60)
        assert total == ran + 60
        os.kill(responses[0].json()["compute"]["tokens"], 9)
        await asyncio.sleep(1)
        for _ in range(10):
            assert await metric(client, "foveate_batch_size_sum") >= total


async def test_workers_are_added_under_load_and_removed_after_it(application: RayApplication) -> None:
    application.deploy(
        replicas=1,
        max_replicas=3,
        scale_replica_startup_s=2.0,
        scale_downscale_delay_s=4.0,
        scale_interval_s=0.5,
        scale_utilisation=0.5,
    )
    await application.wait_for_workers(1)
    stopping = asyncio.Event()
    async with application.client() as client:
        senders = [asyncio.create_task(send_until(stopping, client, b"sleep 0.1")) for _ in range(16)]
        await application.wait_for_workers(3)
        stopping.set()
        statuses = [status for sent in await asyncio.gather(*senders) for status in sent]
    assert set(statuses) == {200}
    await application.wait_for_workers(1)
    assert serve.status().applications[serve_ray.NAME].status == ApplicationStatus.RUNNING


async def test_text_tower_runs_beside_its_image_tower(application: RayApplication, tmp_path: Path) -> None:
    towers = pytest.importorskip("tests.support.text_towers")
    checkpoint = towers.saved_checkpoint(tmp_path / "clip", "clip")
    serve_ray.deploy(SETTINGS, [partial(load_checkpoint, str(checkpoint))])
    headers = {"content-type": "image/png"}
    async with application.client() as client:
        cards = (await client.get("/models")).json()["models"]
        assert {card["name"]: card["task"] for card in cards} == {"clip": "embed", "clip-text": "text"}
        for _ in range(2):
            response = await client.post("/classify?labels=cat,dog,fox", content=PNG, headers=headers)
            assert response.status_code == 200, response.text
            assert sum(each["score"] for each in response.json()["predictions"]) == pytest.approx(1, abs=1e-4)
        refused = await client.post(f"/classify?labels=cat,{'x' * 99}", content=PNG, headers=headers)
        assert refused.status_code == 400 and "shorten the label" in refused.json()["detail"]
        embedded = await client.post("/embed", content=PNG, headers=headers)
        assert embedded.json()["dimensions"] == 24


@pytest.fixture
async def chats(application: RayApplication, tmp_path: Path) -> AsyncIterator[openai.AsyncOpenAI]:
    """The official client of an application with a vision-language model on two replicas."""
    chat_models.write(tmp_path)
    settings = SETTINGS.model_copy(update={"models": ("vit-x-chat",), "replicas": 2})
    serve_ray.deploy(settings, [partial(load_chat, str(tmp_path))])
    async with openai.AsyncOpenAI(
        base_url=f"http://127.0.0.1:{SETTINGS.port}/v1",
        api_key="unused",
        max_retries=0,
        timeout=TIMEOUT_S,
        http_client=openai.DefaultAsyncHttpxClient(trust_env=False),
    ) as client:
        yield client


async def test_chats_stream_from_workers_and_leave_nothing_behind(
    application: RayApplication, chats: openai.AsyncOpenAI
) -> None:
    asked: Any = {"model": "vit-x-chat", "messages": [user()], "max_tokens": 40}
    create = chats.chat.completions.create
    whole = await create(**asked)
    began, first_at, pieces = time.monotonic(), 0.0, []
    async for chunk in await create(**asked, stream=True):
        first_at = first_at or time.monotonic()
        pieces.append(chunk.choices[0].delta.content or "")
    assert "".join(pieces) == whole.choices[0].message.content
    steps = whole.usage.completion_tokens
    assert first_at - began < 0.02 * steps, "the stream begins before the answer is complete"
    with pytest.raises(openai.BadRequestError) as long:
        await create(**asked | {"messages": [user(text("what? " * 2000))]})
    assert long.value.param == "messages"

    async with application.client() as client:

        async def metric(name: str) -> float:
            lines = (await client.get("/metrics")).text.splitlines()
            return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))

        async def wait_for(name: str, value: float) -> None:
            until = time.monotonic() + TIMEOUT_S
            while await metric(name) != value:
                assert time.monotonic() < until, (name, await metric(name))
                await asyncio.sleep(0.2)

        await wait_for("foveate_chat_slots{", 4)
        await wait_for("foveate_first_token_seconds_count", 2)
        stream = await create(**asked | {"max_tokens": 200, "temperature": 2, "seed": 5}, stream=True)
        await anext(aiter(stream))
        assert await metric("foveate_full_quality_seconds_total") > 0
        await stream.close()
        await wait_for("foveate_chat_slots_used", 0)
        await wait_for('foveate_chats_total{end="cancelled"', 1)
    with pytest.raises(openai.APIStatusError) as late:
        await create(**asked, extra_headers={"x-slo-ms": "20"})
    assert late.value.status_code in (429, 504)


async def test_a_worker_that_dies_ends_the_stream_with_an_error(
    application: RayApplication, chats: openai.AsyncOpenAI, tmp_path: Path
) -> None:
    asked: Any = {"model": "vit-x-chat", "messages": [user()], "max_tokens": 200}
    stream = await chats.chat.completions.create(**asked, stream=True)
    await anext(aiter(stream))
    (tmp_path / "die").touch()
    with pytest.raises(openai.APIError, match="worker was"):
        async for _ in stream:
            pass
    (tmp_path / "die").unlink()
    until = time.monotonic() + TIMEOUT_S
    answered = None
    while answered is None:
        assert time.monotonic() < until
        with suppress(openai.InternalServerError):
            answered = await chats.chat.completions.create(**asked | {"max_tokens": 2})
