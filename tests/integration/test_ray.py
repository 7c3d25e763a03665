"""A real Ray on this machine: what becomes of requests when workers die, are replaced, or multiply."""

import asyncio
import os
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import httpx
import pytest

pytest.importorskip("ray", reason="Ray is not installed: pip install 'foveate[ray]'")

import ray
from ray import serve
from ray.serve.schema import ApplicationStatus

from foveate.core.settings import Settings
from foveate.gateway.cli import serve_ray
from tests.e2e.serving import free_port
from tests.support.ray_models import Obedient

pytestmark = pytest.mark.anyio
PATIENCE_S = 60.0
SETTINGS = Settings(
    port=free_port(), cluster="ray", models=("fake",), cache_bytes=0, replica_cpus=0.1, gateway_cpus=0.1
)


class Fleet:
    """The application, and the way to it."""

    def deploy(self, starts_s: float = 0.0, **settings: Any) -> None:
        serve_ray.deploy(SETTINGS.model_copy(update=settings), [partial(Obedient, starts_s=starts_s)])

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{SETTINGS.port}",
            timeout=PATIENCE_S,
            trust_env=False,
            limits=httpx.Limits(max_connections=64),
        )

    @property
    def workers(self) -> int:
        deployment = serve.status().applications[serve_ray.NAME].deployments["fake"]
        return sum(count for state, count in deployment.replica_states.items() if state == "RUNNING")

    async def has(self, workers: int) -> None:
        until = time.monotonic() + PATIENCE_S
        while self.workers != workers:
            assert time.monotonic() < until, serve.status()
            await asyncio.sleep(0.2)


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    serve_ray.start(SETTINGS)
    yield Fleet()
    serve.shutdown()  # type: ignore[no-untyped-call]
    ray.shutdown()


async def ask(client: httpx.AsyncClient, what: bytes, **headers: str) -> httpx.Response:
    return await client.post("/classify", content=what, headers={"content-type": "image/jpeg"} | headers)


async def test_requests_are_answered_by_several_workers_and_none_is_lost(fleet: Fleet) -> None:
    fleet.deploy(replicas=2)
    async with fleet.client() as client:
        answers = await asyncio.gather(*(ask(client, b"sleep 0.01") for _ in range(200)))
    assert {answer.status_code for answer in answers} == {200}
    pids = {answer.json()["compute"]["tokens"] for answer in answers}
    assert len(pids) == 2 and os.getpid() not in pids


async def test_large_media_and_many_at_once_come_through(fleet: Fleet) -> None:
    async with fleet.client() as client:
        large = b"pid" + b" " * 6_000_000
        answers = await asyncio.gather(*(ask(client, large) for _ in range(4)))
    assert [answer.status_code for answer in answers] == [200] * 4


async def test_a_request_id_is_told_once(fleet: Fleet) -> None:
    async with fleet.client() as client:
        answer = await ask(client, b"pid", **{"x-request-id": "abc"})
        assert answer.headers.get_list("x-request-id") == ["abc"]
        assert answer.json()["id"] == "abc"
        answer = await ask(client, b"pid")
        assert answer.headers.get_list("x-request-id") == [answer.json()["id"]]


async def test_what_a_worker_had_when_it_died_is_answered_by_another_one(fleet: Fleet) -> None:
    fleet.deploy(replicas=2)
    async with fleet.client() as client:
        waits = [asyncio.create_task(ask(client, b"sleep 0.5")) for _ in range(12)]
        await asyncio.sleep(0.2)
        died = await ask(client, b"die")
        answers = await asyncio.gather(*waits)
        # It kills the second worker that it is given to as well, and then it is over.
        assert died.status_code == 503 and int(died.headers["retry-after"]) >= 1
        assert died.json()["title"] == "No worker"
    assert {answer.status_code for answer in answers} <= {200, 503}
    await fleet.has(2)
    async with fleet.client() as client:
        assert (await ask(client, b"pid")).status_code == 200


async def test_one_death_costs_nobody_an_answer(fleet: Fleet) -> None:
    fleet.deploy(replicas=2)
    await fleet.has(2)
    async with fleet.client() as client:
        pid = (await ask(client, b"pid")).json()["compute"]["tokens"]
        waits = [asyncio.create_task(ask(client, b"sleep 0.2")) for _ in range(30)]
        await asyncio.sleep(0.3)
        os.kill(pid, 9)
        answers = await asyncio.gather(*waits)
    assert {answer.status_code for answer in answers} == {200}
    await fleet.has(2)


async def test_deadlines_hold_on_the_way_too(fleet: Fleet) -> None:
    fleet.deploy(replicas=1)
    await fleet.has(1)
    async with fleet.client() as client:
        held = [asyncio.create_task(ask(client, b"sleep 1")) for _ in range(2)]
        await asyncio.sleep(0.3)
        began = time.monotonic()
        late = await ask(client, b"pid", **{"x-slo-ms": "300"})
        took_s = time.monotonic() - began
        await asyncio.gather(*held)
    assert late.status_code in (429, 504)
    assert took_s < 0.9


async def test_an_upgrade_under_load_fails_nobody(fleet: Fleet) -> None:
    fleet.deploy(replicas=2)
    await fleet.has(2)
    statuses: list[int] = []
    over = asyncio.Event()

    async def keep_asking(client: httpx.AsyncClient) -> None:
        while not over.is_set():
            statuses.append((await ask(client, b"sleep 0.02")).status_code)

    async with fleet.client() as client:
        before = {(await ask(client, b"pid")).json()["compute"]["tokens"] for _ in range(20)}
        asking = [asyncio.create_task(keep_asking(client)) for _ in range(8)]
        await asyncio.to_thread(fleet.deploy, replicas=2, patience_s=0.9)
        await asyncio.sleep(2)
        over.set()
        await asyncio.gather(*asking)
        after = {(await ask(client, b"pid")).json()["compute"]["tokens"] for _ in range(20)}
    assert len(statuses) > 50 and set(statuses) == {200}
    assert not before & after


async def test_metrics_are_the_sum_of_all_processes_and_survive_them(fleet: Fleet) -> None:
    fleet.deploy(replicas=2, gateways=2)
    await fleet.has(2)

    async def sample(client: httpx.AsyncClient, start: str) -> float:
        lines = (await client.get("/metrics")).text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(start))

    async def settles(client: httpx.AsyncClient, start: str, at_least: float) -> float:
        until = time.monotonic() + PATIENCE_S
        while (found := await sample(client, start)) < at_least:
            assert time.monotonic() < until, found
            await asyncio.sleep(0.2)
        return found

    async with fleet.client() as client:
        asked, ran = (
            await sample(client, "foveate_requests_total"),
            await sample(client, "foveate_batch_size_sum"),
        )
        answers = await asyncio.gather(*(ask(client, b"pid") for _ in range(60)))
        assert await settles(client, "foveate_requests_total", asked + 60) == asked + 60
        total = await settles(client, "foveate_batch_size_sum", ran + 60)
        assert total == ran + 60
        os.kill(answers[0].json()["compute"]["tokens"], 9)
        await asyncio.sleep(1)
        for _ in range(10):
            assert await sample(client, "foveate_batch_size_sum") >= total


async def test_demand_brings_workers_and_calm_takes_them_away(fleet: Fleet) -> None:
    fleet.deploy(
        replicas=1,
        max_replicas=3,
        scale_replica_startup_s=2.0,
        scale_downscale_delay_s=4.0,
        scale_interval_s=0.5,
        scale_utilisation=0.5,
    )
    await fleet.has(1)
    over = asyncio.Event()

    async def keep_asking(client: httpx.AsyncClient) -> None:
        while not over.is_set():
            assert (await ask(client, b"sleep 0.1")).status_code == 200

    async with fleet.client() as client:
        asking = [asyncio.create_task(keep_asking(client)) for _ in range(16)]
        await fleet.has(3)
        over.set()
        await asyncio.gather(*asking)
    await fleet.has(1)
    assert serve.status().applications[serve_ray.NAME].status == ApplicationStatus.RUNNING
