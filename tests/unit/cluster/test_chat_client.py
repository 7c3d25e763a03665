"""Chats on workers: events, failures, cancellation, deadlines, lost workers and refusals."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from time import monotonic
from typing import Any

import pytest

from foveate.cluster.envelope import ChatEnvelope, ChatEventBatch, WorkerLost
from foveate.cluster.remote import RemoteCluster
from foveate.core.chat import ChatCall, SamplingOptions
from foveate.core.errors import (
    BadPlan,
    BadRequest,
    ContextTooLong,
    DeadlineExceeded,
    DeviceHung,
    Draining,
    FoveateError,
    Overloaded,
    RunFailed,
    TooLate,
    UnknownModel,
)
from foveate.core.plan import Plan
from foveate.core.request import Objective
from foveate.engine.hang import HangLimits
from tests.support import chat_models
from tests.support.chat_engines import Collected, RecordedChatRunner, chat_call, collect, expected
from tests.support.fake_runner import FakeRunner
from tests.support.loopback import LoopbackTransport, SilentTransport
from tests.support.workers import TIMEOUT_S, connect, running_workers

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("inference_on_one_thread")]

QUESTION = "what is left of the fox?"


def runner() -> RecordedChatRunner:
    return RecordedChatRunner(slots=2, slot_tokens=256)


def slow_runner() -> RecordedChatRunner:
    """A runner whose steps of decoding take 10 ms."""
    model = runner()
    model.before = lambda stage, _: time.sleep(0.01 if stage == "decode" else 0)
    return model


def endless(**rest: Any) -> ChatCall:
    """A call whose answer takes 100 tokens."""
    return chat_call("how many objects are there?", options=SamplingOptions(100), **rest)


async def begun(model: RecordedChatRunner) -> None:
    """Return once a step of decoding has begun."""
    assert await asyncio.to_thread(model.entered.acquire, timeout=TIMEOUT_S)


async def freed(model: RecordedChatRunner) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while model.free_slots < 2:
            await asyncio.sleep(0.005)


async def test_chats_get_the_answers_that_they_get_in_one_process() -> None:
    async with running_workers(runner(), FakeRunner()) as (chats, images):
        transport = LoopbackTransport(chats)
        cluster = await connect(transport, LoopbackTransport(images))
        calls = [chat_call(QUESTION, [seed]) for seed in range(4)]
        answers = await asyncio.gather(*(collect(cluster, call) for call in calls))
        again = await collect(cluster, calls[0])
        with pytest.raises(BadRequest, match="answers no chats"):
            await collect(cluster, replace(calls[0], model="fake"))
        with pytest.raises(UnknownModel):
            await collect(cluster, replace(calls[0], model="other"))
        assert not cluster.unfinished
    full = chats.cluster.cards()[calls[0].model].full
    assert [answer.text for answer in answers] == [expected(call, full) for call in calls]
    assert again.started is not None and again.started.cached_tokens > 0
    assert transport.cancelled == []
    assert chats.cluster._metrics.registry.get_sample_value(
        "foveate_full_quality_seconds_total", {"model": calls[0].model}
    )


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (chat_call(QUESTION, [1], Plan("other", 64)), BadPlan("x")),
        (chat_call("what? " * 200, [1]), ContextTooLong("x")),
        (chat_call(QUESTION, [1], objective=Objective(min_quality=0.5)), None),
    ],
)
async def test_failures_keep_their_type(call: ChatCall, error: FoveateError | None) -> None:
    async with running_workers(runner()) as (worker,):
        cluster = await connect(LoopbackTransport(worker))
        if error is None:
            assert (await collect(cluster, call)).ended
            return
        with pytest.raises(type(error)) as caught:
            await collect(cluster, call)
        assert type(caught.value) is type(error)


async def test_a_step_that_fails_is_an_error_within_the_answer() -> None:
    model = runner()

    def fail(stage: str, _: object) -> None:
        if stage == "decode" and model.count("decode") == 3:
            raise ValueError("a secret")

    model.before = fail
    async with running_workers(model) as (worker,):
        cluster, answer = await connect(LoopbackTransport(worker)), Collected()
        with pytest.raises(RunFailed, match="the model failed"):
            async for event in cluster.chat(endless()):
                answer.add(event)
    assert answer.started is not None and len(answer.tokens) == 4


async def test_a_client_that_leaves_frees_its_slot_on_the_worker() -> None:
    model = slow_runner()
    async with running_workers(model) as (worker,):
        transport = LoopbackTransport(worker)
        cluster = await connect(transport)
        async with aclosing(cluster.chat(endless())) as events:
            await anext(events)
            await begun(model)
            assert "1 requests" in cluster.unfinished
        await freed(model)
        waiting = asyncio.create_task(collect(cluster, endless()))
        async with asyncio.timeout(TIMEOUT_S):
            while model.free_slots == 2:
                await asyncio.sleep(0.001)
        waiting.cancel()
        await asyncio.wait([waiting])
        await freed(model)
        assert not cluster.unfinished
        assert model.count("decode") < 100
        assert transport.cancelled == [0, 1]


async def test_an_answer_ends_at_its_deadline_even_if_the_worker_is_silent() -> None:
    async with running_workers(runner()) as workers:
        cluster = await connect(SilentTransport(*workers))
        with pytest.raises(DeadlineExceeded):
            await collect(cluster, endless(objective=Objective(monotonic() + 0.1)))


async def test_deadlines_are_sent_as_remaining_seconds() -> None:
    async with running_workers(runner()) as workers:
        transport = LoopbackTransport(*workers)
        cluster = await connect(transport)
        cluster.worker_clients[0].reports.transit_s = 0.2
        now = monotonic()
        await collect(cluster, chat_call(QUESTION, objective=Objective(now + 60), first_token_by=now + 30))
        (envelope,) = transport.chats
    assert envelope.remaining_s == pytest.approx(59.8, abs=0.15)
    assert envelope.first_token_in_s == pytest.approx(29.8, abs=0.15)


def blocked(model: RecordedChatRunner) -> None:
    assert model.gate.wait(TIMEOUT_S)


async def test_a_chat_whose_worker_is_lost_goes_to_another_one_before_its_first_event() -> None:
    first, second = runner(), runner()
    first.gate.clear()
    async with running_workers(first, second) as workers:
        transport = LoopbackTransport(*workers)
        cluster = await connect(transport)
        call = chat_call("what? " * 9, [1])
        first.before = lambda *_: blocked(first)
        answer = asyncio.create_task(collect(cluster, call))
        async with asyncio.timeout(TIMEOUT_S):
            while not workers[0].cluster.unfinished:
                await asyncio.sleep(0.005)
        transport.lost.set()
        assert (await answer).text == expected(call, second.full)
        first.gate.set()


async def test_a_worker_that_is_lost_within_an_answer_is_an_error() -> None:
    first, second = runner(), runner()
    async with running_workers(first, second) as workers:
        transport = LoopbackTransport(*workers)
        cluster = await connect(transport)
        with pytest.raises(WorkerLost):
            async for _ in cluster.chat(endless()):
                transport.lost.set()
        assert not second.steps
        first.before = lambda *_: None
        transport.workers.clear()
        with pytest.raises(WorkerLost):
            await collect(cluster, chat_call(QUESTION))


class TurningTransport(LoopbackTransport):
    """Asks the workers in turn."""

    async def chat(self, envelope: ChatEnvelope) -> AsyncIterator[ChatEventBatch]:
        self.workers = [*self.workers[1:], self.workers[0]]
        async for batch in super().chat(envelope):
            yield batch


async def test_a_chat_that_a_draining_worker_refuses_goes_to_another_one() -> None:
    async with running_workers(runner(), runner()) as workers:
        cluster = await connect(TurningTransport(*workers))
        await workers[1].cluster.drain(1)
        assert (await collect(cluster, chat_call(QUESTION))).ended


async def test_a_chat_that_a_hung_worker_refuses_goes_to_another_one() -> None:
    """The refused call stays open until the device responds, so that Serve prefers other workers."""
    hung, serving = runner(), runner()
    async with running_workers(hung, serving, hang_limits=HangLimits(0.1, 1000)) as workers:
        transport = TurningTransport(workers[1], workers[0])
        cluster = await connect(transport)
        hung.gate.clear()
        inside = asyncio.create_task(collect(cluster, endless()))
        async with asyncio.timeout(TIMEOUT_S):
            while workers[0].cluster.ready:
                await asyncio.sleep(0.01)
        transport.workers = [workers[1], workers[0]]
        assert (await collect(cluster, chat_call(QUESTION))).ended
        client = cluster.worker_clients[0].chats
        assert len(client._tasks) >= 2
        transport.workers = [workers[0]]
        with pytest.raises(DeviceHung):
            await collect(cluster, chat_call(QUESTION))
        hung.gate.set()
        await inside
        async with asyncio.timeout(TIMEOUT_S):
            while client._tasks:
                await asyncio.sleep(0.01)


async def test_a_full_queue_on_the_worker_is_overloaded() -> None:
    model = slow_runner()
    async with running_workers(model, queue_items=1) as (worker,):
        cluster = await connect(LoopbackTransport(worker))
        running = []
        async with asyncio.timeout(TIMEOUT_S):
            while free := model.free_slots:
                running.append(asyncio.create_task(collect(cluster, endless())))
                while model.free_slots == free:
                    await asyncio.sleep(0.001)
        model.gate.clear()
        running.append(asyncio.create_task(collect(cluster, endless())))
        async with asyncio.timeout(TIMEOUT_S):
            while worker.cluster.unfinished.find("3 requests") < 0:
                await asyncio.sleep(0.001)
        with pytest.raises(Overloaded):
            await collect(cluster, chat_call(QUESTION))
        model.gate.set()
        await asyncio.gather(*running)


async def test_the_deadline_of_the_first_token_counts_before_pictures_are_decoded() -> None:
    async with running_workers(runner()) as (worker,):
        cluster = await connect(LoopbackTransport(worker))
        call = chat_call(QUESTION, [1])
        cluster.worker_clients[0].reports.receive("worker", {call.model: 3.0})

        def reserve(first_token_s: float, deadline_s: float) -> None:
            now = monotonic()
            asked = replace(call, first_token_by=now + first_token_s)
            cluster.reserve(call.model, Objective(now + deadline_s), None, 0.0, asked)

        reserve(5.0, 20.0)
        with pytest.raises(TooLate):
            reserve(1.0, 20.0)
        with pytest.raises(DeadlineExceeded):
            reserve(5.0, -1.0)
        await cluster.close()


async def test_a_drain_waits_for_answers_and_closing_fails_them() -> None:
    model = slow_runner()
    async with running_workers(model) as (worker,):
        cluster = await connect(LoopbackTransport(worker))
        answer = asyncio.create_task(collect(cluster, endless()))
        await begun(model)
        model.gate.clear()
        assert not await cluster.drain(0.05)
        with pytest.raises(Draining):
            await collect(cluster, endless())
        model.gate.set()
        assert await cluster.drain(TIMEOUT_S)
        assert (await answer).ended
    async with running_workers(runner()) as workers:
        silent = await connect(SilentTransport(*workers))
        await closed_while_pending(silent)


async def closed_while_pending(cluster: RemoteCluster) -> None:
    answer = asyncio.create_task(collect(cluster, endless()))
    await asyncio.sleep(0.05)
    await cluster.close()
    with pytest.raises(Draining, match="before the request was complete"):
        await answer


async def test_a_worker_sends_what_is_ready_in_one_message() -> None:
    model = runner()
    async with running_workers(model) as (worker,):
        call = chat_call(QUESTION, options=SamplingOptions(60))
        batches: Any = worker.chat(ChatEnvelope("gateway", 1, call, 60.0, None))
        async with aclosing(batches):
            first = await anext(batches)
            async with asyncio.timeout(TIMEOUT_S):
                while worker.cluster.unfinished:
                    await asyncio.sleep(0.005)
            rest = [batch async for batch in batches]
        await asyncio.sleep(0)
        assert not worker._running
    assert len(rest) <= 3 and sum(len(batch.events) for batch in (first, *rest)) > 30


async def test_queues_are_reported_with_the_ends_of_answers_and_not_with_each_token() -> None:
    model = slow_runner()
    async with running_workers(model) as (worker,):
        batches: Any = worker.chat(ChatEnvelope("gateway", 1, chat_call(QUESTION), 60.0, None))
        received = [batch async for batch in batches]
        cluster = await connect(LoopbackTransport(worker))
        cluster.worker_clients[0].reports.receive(worker.name, {chat_models.NAME: 1000.0})
        await collect(cluster, chat_call(QUESTION))
        assert cluster.worker_clients[0].reports.queue_wait_s(chat_models.NAME) == 0
        await cluster.close()
    reported = [batch.queue_wait_s is not None for batch in received]
    assert len(reported) > 4 and reported == [True, *[False] * (len(reported) - 2), True]
