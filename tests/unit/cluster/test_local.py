"""The local cluster: engines of several runners in one process."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from time import monotonic

import pytest

from foveate.cluster.local import LocalCluster
from foveate.core.chat import SamplingOptions
from foveate.core.errors import BadRequest, DeviceHung, Draining, RunFailed, SetupError, UnknownModel
from foveate.core.metrics import Metrics
from foveate.core.request import Objective, Request
from foveate.engine.hang import HangLimits
from foveate.engine.runner import Runner
from tests.support.chat_engines import RecordedChatRunner, chat_call, collect, expected
from tests.support.fake_runner import FakeRunner
from tests.support.workers import TIMEOUT_S, fake_request, forward_started

pytestmark = pytest.mark.anyio


class LocalSubmodelRunner(FakeRunner):
    """Serves a second model besides its own."""

    def __init__(self) -> None:
        super().__init__("main")
        self.submodels: Sequence[Runner] = (FakeRunner("sub"),)


async def test_submodels_are_served_after_the_model_that_brings_them() -> None:
    cluster = LocalCluster([LocalSubmodelRunner, FakeRunner], Metrics())
    assert list(cluster.cards()) == ["main", "sub", "fake"]
    await cluster.start()
    for model in cluster.cards():
        slot = cluster.reserve(model, Objective(), None, 0.0)
        outcome = await slot.submit(Request("r", model, "image", 1))
        assert outcome.result.scores[0] == 0.75
    assert cluster.queue_wait_s() == pytest.approx({"main": 0, "sub": 0, "fake": 0}, abs=0.01)
    await cluster.close()


def test_two_models_with_the_same_name_are_refused() -> None:
    with pytest.raises(SetupError, match="same name"):
        LocalCluster([FakeRunner, FakeRunner], Metrics())


async def test_it_is_ready_between_start_and_drain() -> None:
    cluster = LocalCluster([FakeRunner], Metrics())
    assert not cluster.ready
    await cluster.start()
    assert cluster.ready and not cluster.failed
    with pytest.raises(UnknownModel, match="'other'"):
        await cluster.submit(Request("r", "other", "image", 1))
    assert await cluster.drain(TIMEOUT_S)
    assert not cluster.ready and not cluster.failed
    with pytest.raises(Draining):
        await cluster.submit(fake_request())
    await cluster.close()
    await cluster.close()


async def test_a_drain_ends_at_its_time_out_and_closing_fails_queued_requests() -> None:
    runner = FakeRunner(max_batch=1)
    cluster = LocalCluster([lambda: runner], Metrics())
    await cluster.start()
    runner.gate.clear()
    running = asyncio.create_task(cluster.submit(fake_request("running")))
    await forward_started(runner)
    queued = [asyncio.create_task(cluster.submit(fake_request("queued"))) for _ in range(4)]
    await asyncio.sleep(0.02)
    assert not await cluster.drain(0.05)
    closing = asyncio.create_task(cluster.close())
    await asyncio.sleep(0.02)
    runner.gate.set()
    await asyncio.wait_for(closing, TIMEOUT_S)
    results = await asyncio.gather(running, *queued, return_exceptions=True)
    failed = [result for result in results if isinstance(result, Draining)]
    assert {error.detail for error in failed} == {"the server shut down before the request was complete"}


async def test_requests_that_the_gateway_has_accepted_are_admitted_during_a_drain() -> None:
    cluster = LocalCluster([FakeRunner], Metrics())
    await cluster.start()
    slot = cluster.reserve("fake", Objective(), None, 1.0)
    cluster.begin_drain()
    assert cluster.draining and not cluster.ready
    assert (await slot.submit(fake_request())).result.scores[0] == 0.75
    assert await cluster.drain(TIMEOUT_S)
    with pytest.raises(Draining):
        await slot.submit(fake_request())
    await cluster.close()


async def test_a_hang_of_one_model_makes_the_cluster_unready_and_then_failed() -> None:
    runner = FakeRunner("slow")
    cluster = LocalCluster([lambda: runner, FakeRunner], Metrics(), hang_limits=HangLimits(0.1, 0.4))
    await cluster.start()
    assert cluster.ready and not cluster.problem and not cluster.unfinished
    runner.gate.clear()
    inside = asyncio.create_task(cluster.submit(Request("r", "slow", "image", 1)))
    await forward_started(runner)
    assert "a batch of 1 for slow" in cluster.unfinished and "1 requests" in cluster.unfinished
    async with asyncio.timeout(TIMEOUT_S):
        while cluster.ready:
            await asyncio.sleep(0.01)
    assert "a batch of 1 for slow under" in cluster.problem
    with pytest.raises(DeviceHung, match="slow"):
        await cluster.submit(fake_request())
    async with asyncio.timeout(TIMEOUT_S):
        while not cluster.failed:
            await asyncio.sleep(0.01)
    with pytest.raises(RunFailed):
        await inside
    assert not await asyncio.wait_for(cluster.drain(1000), TIMEOUT_S), "the thread of the forward is lost"
    assert not cluster.failed, "a cluster that drains ends anyway"
    runner.gate.set()
    await cluster.close()


async def test_an_engine_that_has_failed_is_a_reason() -> None:
    cluster = LocalCluster([FakeRunner], Metrics())
    await cluster.start()
    loop = cluster._engines["fake"]._loop
    assert loop is not None
    loop.cancel()
    await asyncio.wait([loop])
    assert cluster.failed and cluster.problem == "the engine of fake has failed"
    await cluster.close()


def chat_runner() -> RecordedChatRunner:
    return RecordedChatRunner(slots=4, slot_tokens=256)


async def test_a_vision_language_model_has_an_engine_for_chats() -> None:
    cluster = LocalCluster([chat_runner, FakeRunner], Metrics())
    assert [card.task for card in cluster.cards().values()] == ["chat", "classify"]
    await cluster.start()
    call = chat_call("what is left of the fox?", [1])
    answers = await asyncio.gather(*(collect(cluster, call) for _ in range(3)))
    assert {answer.text for answer in answers} == {expected(call, cluster.cards()[call.model].full)}
    demand = cluster._metrics.demand.labels(call.model)
    before = demand._value.get()
    slot = cluster.reserve(call.model, call.objective, None, 0.0, call)
    assert demand._value.get() > before
    before = demand._value.get()
    assert (await collect(slot, call)).text == answers[0].text
    assert demand._value.get() == before
    await collect(slot, call)  # another call counts as an arrival
    assert demand._value.get() > before
    assert cluster.queue_wait_s()[call.model] == pytest.approx(0, abs=0.01)
    with pytest.raises(BadRequest, match="/v1/chat/completions"):
        await cluster.submit(Request("r", call.model, "image", 1))
    with pytest.raises(BadRequest, match="answers no chats"):
        await collect(cluster, replace(call, model="fake"))
    with pytest.raises(UnknownModel, match="'other'"):
        await collect(cluster, replace(call, model="other"))
    assert await cluster.drain(TIMEOUT_S)
    with pytest.raises(Draining):
        await collect(cluster, call)
    await cluster.close()


async def test_chats_and_images_share_a_device() -> None:
    """An image is answered between two tokens of a long answer."""
    runner = chat_runner()
    cluster = LocalCluster([lambda: runner, FakeRunner], Metrics())
    await cluster.start()
    long = chat_call("how many objects are there?", options=SamplingOptions(200))
    answer = asyncio.create_task(collect(cluster, long))
    assert await asyncio.to_thread(runner.entered.acquire, timeout=TIMEOUT_S)
    steps = runner.count("decode")
    for _ in range(3):
        image = fake_request(deadline=monotonic() + 10)
        outcome = await asyncio.wait_for(cluster.submit(image), TIMEOUT_S)
        assert outcome.reason == "full"
    assert not answer.done()
    assert (await answer).text == expected(long, runner.full)
    assert runner.count("decode") > steps
    await cluster.close()
