"""The worker: responses in batches, deadlines on its own clock, and requests that arrive twice."""

import asyncio
from time import monotonic

import numpy as np
import pytest

from foveate.cluster.envelope import RequestBatch, RequestEnvelope, ResponseBatch, ResponseEnvelope
from foveate.cluster.worker import Worker, fitting_count, with_local_deadline
from foveate.core.errors import RunFailed
from foveate.core.outcome import ClassMaps, Outcome, Result, Timings
from tests.support.fake_runner import FULL, FakeRunner
from tests.support.workers import TIMEOUT_S, fake_request, forward_started, running_workers


async def responses_of(worker: Worker, request_batch: RequestBatch) -> list[ResponseBatch]:
    return [response_batch async for response_batch in worker.run(request_batch)]


@pytest.mark.anyio
async def test_a_request_may_arrive_twice() -> None:
    runner = FakeRunner()
    async with running_workers(runner) as (worker,):
        runner.gate.clear()
        request_batch = RequestBatch("gateway", [RequestEnvelope(1, fake_request(), None)])
        first, second = (asyncio.create_task(responses_of(worker, request_batch)) for _ in range(2))
        await forward_started(runner)
        runner.gate.set()
        both = await asyncio.wait_for(asyncio.gather(first, second), TIMEOUT_S)
    assert [len(responses) for responses in both] == [1, 1]


@pytest.mark.anyio
async def test_responses_carry_the_worker_and_its_queue_wait() -> None:
    async with running_workers(FakeRunner()) as (worker,):
        request_batch = RequestBatch("gateway", [RequestEnvelope(7, fake_request(), 5.0)])
        (response_batch,) = await responses_of(worker, request_batch)
    assert response_batch.worker == "worker 0"
    assert [envelope.number for envelope in response_batch.envelopes] == [7]
    assert response_batch.queue_wait_s.keys() == {"fake"}


@pytest.mark.anyio
async def test_only_the_sender_of_a_request_can_cancel_it() -> None:
    runner = FakeRunner()
    async with running_workers(runner) as (worker,):
        runner.gate.clear()
        envelopes = [RequestEnvelope(number, fake_request(media=f"p{number}"), None) for number in range(9)]
        task = asyncio.create_task(responses_of(worker, RequestBatch("gateway", envelopes)))
        await forward_started(runner)
        worker.cancel("another gateway", [7])
        worker.cancel("gateway", [8, 99])
        await asyncio.sleep(0.05)
        runner.gate.set()
        await asyncio.wait_for(task, TIMEOUT_S)
    media = [item for batch in runner.batches for item in batch]
    assert "p7" in media and "p8" not in media


def test_large_responses_are_split_into_several_batches() -> None:
    maps = ClassMaps((0, 1), np.zeros((2, 500, 500), np.float16))
    outcome = Outcome(Result(np.zeros(1, np.float32), 1, 1, 0.0, maps=maps), FULL, Timings(0, 0), 1)
    assert fitting_count([ResponseEnvelope(number, outcome) for number in range(9)]) == 3
    assert fitting_count([ResponseEnvelope(0, RunFailed("no"))] * 9) == 9


def test_a_deadline_is_set_on_the_clock_of_the_worker() -> None:
    request = with_local_deadline(RequestEnvelope(1, fake_request(deadline=1.0), 3.0))
    assert request.objective.deadline == pytest.approx(monotonic() + 3.0, abs=0.5)
    assert with_local_deadline(RequestEnvelope(1, fake_request(), None)).objective.deadline is None
