"""The worker client: batching, cancellation, deadlines, lost workers and transit times."""

import asyncio
import threading
from collections.abc import AsyncIterator
from time import monotonic

import pytest

from foveate.cluster.client import WorkerClient, _PendingRequest
from foveate.cluster.envelope import (
    MAX_REFUSED_ATTEMPTS,
    RequestBatch,
    ResponseBatch,
    ResponseEnvelope,
    WorkerLost,
)
from foveate.cluster.worker import Worker
from foveate.cluster.worker_reports import MAX_TRANSIT_S
from foveate.core.errors import (
    BadPlan,
    DeadlineExceeded,
    DeviceHung,
    Overloaded,
    RunFailed,
    TooLate,
    UnknownModel,
)
from foveate.core.outcome import Result
from foveate.core.plan import Plan
from foveate.core.request import Request
from foveate.engine.hang import HangLimits
from tests.support.fake_runner import FakeRunner
from tests.support.loopback import LoopbackTransport, SilentTransport
from tests.support.workers import TIMEOUT_S, connect, fake_request, forward_started, running_workers

pytestmark = pytest.mark.anyio


async def test_a_request_cancelled_while_it_is_sent_does_not_affect_another() -> None:
    async with running_workers(FakeRunner()) as workers:
        cluster = await connect(LoopbackTransport(*workers))
        cancelled, kept = (asyncio.create_task(cluster.submit(fake_request())) for _ in range(2))
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_soon(cancelled.cancel)
        await asyncio.wait_for(kept, TIMEOUT_S)


async def test_concurrent_requests_share_a_batch_and_each_gets_its_own_response() -> None:
    runner = FakeRunner()
    async with running_workers(runner) as workers:
        transport = LoopbackTransport(*workers)
        cluster = await connect(transport)
        outcomes = await asyncio.gather(*(cluster.submit(fake_request(f"r{i}", f"p{i}")) for i in range(8)))
    assert [len(batch.envelopes) for batch in transport.request_batches] == [8]
    assert sorted(item for batch in runner.batches for item in batch) == [f"p{i}" for i in range(8)]
    assert all(outcome.result.scores[0] == 0.75 for outcome in outcomes)


async def test_a_single_request_is_sent_at_once_and_later_ones_share_a_batch() -> None:
    runner = FakeRunner()
    async with running_workers(runner) as workers:
        transport = LoopbackTransport(*workers)
        cluster = await connect(transport)
        runner.gate.clear()
        first = asyncio.create_task(cluster.submit(fake_request("first")))
        await forward_started(runner)
        others = [asyncio.create_task(cluster.submit(fake_request(f"r{i}"))) for i in range(5)]
        await asyncio.sleep(0.05)
        runner.gate.set()
        await asyncio.gather(first, *others)
    assert [len(batch.envelopes) for batch in transport.request_batches] == [1, 5]


async def test_large_media_are_split_into_several_batches() -> None:
    async with running_workers(FakeRunner()) as workers:
        transport = LoopbackTransport(*workers)
        cluster = await connect(transport)
        requests = [Request(f"r{i}", "fake", "p", 3 * 2**19) for i in range(5)]
        await asyncio.gather(*(cluster.submit(request) for request in requests))
    assert [len(batch.envelopes) for batch in transport.request_batches] == [2, 2, 1]


class SlowOnDemand(FakeRunner):
    """Runs one request at a time; media "slow" blocks until `released` is set."""

    def __init__(self) -> None:
        super().__init__(max_batch=1)
        self.released = threading.Event()

    def run(self, batch: list[object], plan: Plan) -> list[Result | Exception]:
        assert batch != ["slow"] or self.released.wait(TIMEOUT_S)
        return super().run(batch, plan)


async def test_a_response_does_not_wait_for_the_rest_of_its_batch() -> None:
    runner = SlowOnDemand()
    async with running_workers(runner) as workers:
        transport = LoopbackTransport(*workers)
        cluster = await connect(transport)
        quick, slow = (
            asyncio.create_task(cluster.submit(fake_request(name, name))) for name in ("quick", "slow")
        )
        await asyncio.wait_for(quick, TIMEOUT_S)
        assert len(transport.request_batches) == 1 and not slow.done()
        runner.released.set()
        await slow


async def test_failures_keep_their_type_and_their_text() -> None:
    runner = FakeRunner()
    async with running_workers(runner, queue_items=1) as workers:
        cluster = await connect(LoopbackTransport(*workers))
        with pytest.raises(RunFailed):
            await cluster.submit(fake_request(media="poison"))
        with pytest.raises(BadPlan, match="no fake@64"):
            await cluster.submit(Request("r", "fake", "p", 1, plan=Plan("fake", 64)))
        with pytest.raises(UnknownModel):
            await cluster.submit(Request("r", "other", "p", 1))
        await forward_started(runner)
        while runner.entered.acquire(blocking=False):
            pass
        runner.gate.clear()
        running = asyncio.create_task(cluster.submit(fake_request()))
        await forward_started(runner)
        queued = asyncio.create_task(cluster.submit(fake_request()))
        await asyncio.sleep(0.05)
        with pytest.raises(Overloaded) as refused:
            await cluster.submit(fake_request())
        assert refused.value.retry_after_s >= 0
        runner.gate.set()
        await asyncio.gather(running, queued)


async def test_a_request_cancelled_in_the_queue_is_not_run() -> None:
    runner = FakeRunner()
    async with running_workers(runner) as workers:
        transport = LoopbackTransport(*workers)
        cluster = await connect(transport)
        runner.gate.clear()
        first = asyncio.create_task(cluster.submit(fake_request("first", "first")))
        await forward_started(runner)
        cancelled = asyncio.create_task(cluster.submit(fake_request("cancelled", "cancelled")))
        kept = asyncio.create_task(cluster.submit(fake_request("kept", "kept")))
        await asyncio.sleep(0.05)
        cancelled.cancel()
        await asyncio.sleep(0.05)
        assert len(transport.cancelled) == 1
        runner.gate.set()
        await asyncio.gather(first, kept)
    assert [item for batch in runner.batches for item in batch] == ["first", "kept"]


async def test_a_request_cancelled_before_it_is_sent_is_not_sent() -> None:
    async with running_workers(FakeRunner()) as workers:
        transport = LoopbackTransport(*workers)
        cluster = await connect(transport)
        cancelled = asyncio.create_task(cluster.submit(fake_request()))
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        await asyncio.sleep(0.05)
    assert not transport.request_batches and not transport.cancelled


async def test_a_slow_transit_does_not_raise_the_estimate_for_ever() -> None:
    client = WorkerClient(LoopbackTransport())
    for _ in range(50):
        client.reports.observe_transit(60.0)
    assert client.reports.transit_s <= MAX_TRANSIT_S
    refusal = ResponseEnvelope(7, TooLate("no time left"))
    for _ in range(50):
        future = asyncio.get_running_loop().create_future()
        client._pending[7] = _PendingRequest(fake_request(), future, 1, monotonic())
        client._receive(ResponseBatch("worker", (refusal,), {}))
        with pytest.raises(TooLate):
            await client._pending.pop(7).future
    assert client.reports.transit_s < 0.01


async def test_a_request_ends_at_its_deadline_even_if_the_worker_does_not_answer() -> None:
    async with running_workers(FakeRunner()) as workers:
        cluster = await connect(SilentTransport(*workers))
        with pytest.raises(DeadlineExceeded):
            await asyncio.wait_for(cluster.submit(fake_request(deadline=monotonic() + 0.1)), TIMEOUT_S)
        await cluster.close()


class FailingTransport(LoopbackTransport):
    """Every other call raises an exception that the client does not know."""

    async def send(self, request_batch: RequestBatch) -> AsyncIterator[ResponseBatch]:
        self.request_batches.append(request_batch)
        if len(self.request_batches) % 2:
            raise ValueError("an unknown failure")
        async for response_batch in super().send(request_batch):
            yield response_batch


async def test_an_unknown_failure_of_the_transport_is_logged_and_the_request_retried(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running_workers(FakeRunner()) as workers:
        cluster = await connect(FailingTransport(*workers))
        await asyncio.wait_for(cluster.submit(fake_request()), TIMEOUT_S)
    assert "a batch of 1 requests failed on the way" in caplog.text


async def test_the_queue_wait_is_that_of_the_least_loaded_worker() -> None:
    client = WorkerClient(LoopbackTransport())
    client._receive(ResponseBatch("idle", (), {"fake": 0.2}))
    await asyncio.sleep(0.3)
    client._receive(ResponseBatch("busy", (), {"fake": 9.0}))
    assert client.reports.queue_wait_s("fake") == 0


async def test_deadlines_are_sent_as_remaining_seconds_less_the_transit_time() -> None:
    async with running_workers(FakeRunner()) as workers:
        transport = LoopbackTransport(*workers)
        cluster = await connect(transport)
        cluster.worker_clients[0].reports.transit_s = 0.2
        await cluster.submit(fake_request(deadline=monotonic() + 5))
        (envelope,) = transport.request_batches[0].envelopes
    assert envelope.remaining_s == pytest.approx(4.8, abs=0.1)


async def test_requests_of_a_lost_worker_run_on_another_worker() -> None:
    lost, survivor = FakeRunner(), FakeRunner()
    async with running_workers(lost, survivor) as workers:
        transport = LoopbackTransport(*workers)
        cluster = await connect(transport)
        lost.gate.clear()
        tasks = [asyncio.create_task(cluster.submit(fake_request(f"r{i}", f"p{i}"))) for i in range(3)]
        await forward_started(lost)
        transport.lost.set()
        await asyncio.wait_for(asyncio.gather(*tasks), TIMEOUT_S)
    assert sorted(item for batch in survivor.batches for item in batch) == ["p0", "p1", "p2"]


async def test_a_request_fails_after_its_second_worker_is_lost() -> None:
    first, second = FakeRunner(), FakeRunner()
    async with running_workers(first, second, FakeRunner()) as workers:
        transport = LoopbackTransport(*workers)
        cluster = await connect(transport)
        for runner in (first, second):
            runner.gate.clear()
        task = asyncio.create_task(cluster.submit(fake_request()))
        for runner in (first, second):
            await forward_started(runner)
            transport.lost.set()
        with pytest.raises(WorkerLost) as lost:
            await asyncio.wait_for(task, TIMEOUT_S)
    assert lost.value.status == 503 and lost.value.retry_after_s > 0


async def test_a_request_past_its_deadline_is_not_retried() -> None:
    lost, survivor = FakeRunner(), FakeRunner()
    async with running_workers(lost, survivor) as workers:
        transport = LoopbackTransport(*workers)
        cluster = await connect(transport)
        lost.gate.clear()
        task = asyncio.create_task(cluster.submit(fake_request(deadline=monotonic() + 0.2)))
        await forward_started(lost)
        with pytest.raises(DeadlineExceeded):
            await task
        transport.lost.set()
        await asyncio.sleep(0.05)
    assert not survivor.batches


class AlternatingTransport(LoopbackTransport):
    """Reverses the order of its workers after each response."""

    async def send(self, request_batch: RequestBatch) -> AsyncIterator[ResponseBatch]:
        async for response_batch in super().send(request_batch):
            self.workers = self.workers[::-1]
            yield response_batch


async def test_requests_that_a_draining_worker_refuses_run_on_another_worker() -> None:
    draining, serving = FakeRunner(), FakeRunner()
    async with running_workers(draining, serving) as workers:
        cluster = await connect(AlternatingTransport(*workers))
        await workers[0].cluster.drain(1)
        await cluster.submit(fake_request())
    assert not draining.batches and len(serving.batches) == 1


class LeastBusyTransport(LoopbackTransport):
    """Sends each batch to the worker with the fewest open calls, as Serve does; the first one of equals."""

    def __init__(self, *workers: Worker) -> None:
        super().__init__(*workers)
        self.open = dict.fromkeys(workers, 0)

    async def send(self, request_batch: RequestBatch) -> AsyncIterator[ResponseBatch]:
        worker = min(self.open, key=lambda each: self.open[each])
        self.open[worker] += 1
        try:
            async for response_batch in worker.run(request_batch):
                yield response_batch
        finally:
            self.open[worker] -= 1


async def test_requests_behind_a_hang_run_on_another_worker_and_the_hung_one_gets_few() -> None:
    hung, serving = FakeRunner(), FakeRunner()
    limits = HangLimits(0.1, 1000)
    async with running_workers(hung, serving, hang_limits=limits) as workers:
        transport = LeastBusyTransport(*workers)
        cluster = await connect(transport)
        hung.gate.clear()
        inside = asyncio.create_task(cluster.submit(fake_request()))
        await forward_started(hung)
        behind = [asyncio.create_task(cluster.submit(fake_request(f"r{i}"))) for i in range(3)]
        async with asyncio.timeout(TIMEOUT_S):
            while workers[0].cluster.ready:
                await asyncio.sleep(0.01)
        await asyncio.wait_for(asyncio.gather(*behind), TIMEOUT_S)
        for number in range(20):
            await asyncio.wait_for(cluster.submit(fake_request(f"s{number}")), TIMEOUT_S)
        assert transport.open[workers[0]] <= 5, "most requests never reach the hung worker"
        assert sum(map(len, serving.batches)) == 23 and not inside.done()
        hung.gate.set()
        await asyncio.wait_for(inside, TIMEOUT_S)
        async with asyncio.timeout(TIMEOUT_S):
            while transport.open[workers[0]]:
                await asyncio.sleep(0.01)
        await cluster.close()


async def test_a_request_that_every_worker_refuses_because_of_a_hang_fails_with_503() -> None:
    runner = FakeRunner()
    async with running_workers(runner, hang_limits=HangLimits(0.1, 0.5)) as workers:
        transport = LoopbackTransport(*workers)
        cluster = await connect(transport)
        runner.gate.clear()
        inside = asyncio.create_task(cluster.submit(fake_request()))
        await forward_started(runner)
        async with asyncio.timeout(TIMEOUT_S):
            while workers[0].cluster.ready:
                await asyncio.sleep(0.01)
        with pytest.raises(DeviceHung):
            await asyncio.wait_for(cluster.submit(fake_request()), TIMEOUT_S)
        assert len(transport.request_batches) == 1 + MAX_REFUSED_ATTEMPTS
        with pytest.raises(RunFailed):  # not retried: the request may make another worker hang
            await asyncio.wait_for(inside, TIMEOUT_S)
        await cluster.close()
