"""The remote cluster: refusals by reported queue lengths, draining, and models of several deployments."""

import asyncio
import threading
from collections.abc import Sequence
from time import monotonic

import pytest

from foveate.cluster.envelope import ResponseBatch
from foveate.cluster.local import LocalCluster
from foveate.cluster.worker import Worker
from foveate.core.errors import DeadlineExceeded, Draining, SetupError, TooLate
from foveate.core.metrics import Metrics
from foveate.core.model import ModelCard
from foveate.core.request import Objective
from tests.support.fake_runner import FakeRunner
from tests.support.loopback import LoopbackTransport, SilentTransport
from tests.support.workers import TIMEOUT_S, connect, fake_request, forward_started, running_workers

pytestmark = pytest.mark.anyio


async def test_a_request_that_the_reported_queues_would_delay_too_long_is_refused() -> None:
    runner = FakeRunner()
    async with running_workers(runner) as workers:
        transport = LoopbackTransport(*workers)
        cluster = await connect(transport)
        client = cluster.worker_clients[0]
        cluster.reserve("fake", Objective(monotonic() + 0.1), None, 0.0)  # no worker has reported yet
        client._receive(ResponseBatch("worker", (), {"fake": 3.0}))
        with pytest.raises(TooLate) as refused:
            cluster.reserve("fake", Objective(monotonic() + 1.0), None, 0.0)
        assert refused.value.retry_after_s == pytest.approx(2, abs=0.2)
        cluster.reserve("fake", Objective(monotonic() + 5.0), None, 0.0)
        cluster.reserve("fake", Objective(), None, 0.0)
        client._receive(ResponseBatch("another", (), {"fake": 0.0}))
        cluster.reserve("fake", Objective(monotonic() + 1.0), None, 0.0)
        with pytest.raises(DeadlineExceeded):
            cluster.reserve("fake", Objective(monotonic() - 1), None, 0.0)
        await asyncio.sleep(0.05)
    (request_batch,) = transport.request_batches
    assert not request_batch.envelopes and len(request_batch.refused["fake"]) == 1


async def test_a_request_refused_by_the_gateway_counts_as_demand_at_the_worker() -> None:
    metrics, runner = Metrics(), FakeRunner()
    local = LocalCluster([lambda: runner], metrics)
    await local.start()
    cluster = await connect(LoopbackTransport(Worker(local, "worker")))

    def demand() -> float:
        return metrics.registry.get_sample_value("foveate_full_quality_seconds_total", {"model": "fake"}) or 0

    await cluster.submit(fake_request())
    demand_of_one = demand()
    assert demand_of_one > 0
    cluster.worker_clients[0].report_refusal("fake", 1.0)
    await asyncio.sleep(0.05)
    assert demand() > demand_of_one
    await local.close()


async def test_a_drain_waits_for_responses_and_refuses_new_requests() -> None:
    runner = FakeRunner()
    async with running_workers(runner) as workers:
        cluster = await connect(LoopbackTransport(*workers))
        runner.gate.clear()
        task = asyncio.create_task(cluster.submit(fake_request()))
        await forward_started(runner)
        assert not await cluster.drain(0.05)
        assert not cluster.ready
        with pytest.raises(Draining):
            await cluster.submit(fake_request())
        threading.Timer(0.05, runner.gate.set).start()
        assert await cluster.drain(TIMEOUT_S)
        await task


async def test_closing_fails_pending_requests() -> None:
    async with running_workers(FakeRunner()) as workers:
        cluster = await connect(SilentTransport(*workers))
        task = asyncio.create_task(cluster.submit(fake_request()))
        await asyncio.sleep(0.05)
        await cluster.close()
        with pytest.raises(Draining, match="before the request was complete"):
            await task


async def test_two_deployments_with_models_of_the_same_name_are_refused() -> None:
    async with running_workers(FakeRunner(), FakeRunner()) as (one, other):
        with pytest.raises(SetupError, match="same name"):
            await connect(LoopbackTransport(one), LoopbackTransport(other))


async def test_the_model_of_the_first_deployment_is_the_default() -> None:
    async with running_workers(FakeRunner("b"), FakeRunner("a")) as (one, other):
        cluster = await connect(LoopbackTransport(one), LoopbackTransport(other))
        cards: Sequence[ModelCard] = tuple(cluster.cards().values())
    assert [card.name for card in cards] == ["b", "a"]


async def test_requests_that_the_gateway_has_accepted_are_sent_during_a_drain() -> None:
    async with running_workers(FakeRunner()) as workers:
        cluster = await connect(LoopbackTransport(*workers))
        slot = cluster.reserve("fake", Objective(), None, 1.0)
        cluster.begin_drain()
        assert cluster.draining and not cluster.ready
        await slot.submit(fake_request())
        assert await cluster.drain(TIMEOUT_S)
        with pytest.raises(Draining):
            await slot.submit(fake_request())


async def test_it_says_what_a_drain_waits_for() -> None:
    async with running_workers(FakeRunner()) as workers:
        cluster = await connect(SilentTransport(*workers))
        assert not cluster.unfinished and not cluster.problem and not cluster.failed
        task = asyncio.create_task(cluster.submit(fake_request()))
        await asyncio.sleep(0.05)
        assert "1 requests" in cluster.unfinished
        await cluster.close()
        with pytest.raises(Draining):
            await task
