"""The transport to Ray Serve replicas: which methods it calls, and what a lost replica becomes."""

import inspect
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

pytest.importorskip("ray", reason="Ray is not installed: pip install 'foveate[ray]'")

from ray.exceptions import RayActorError, TaskCancelledError

from foveate.cluster.envelope import ChatEnvelope, ChatEventBatch, RequestBatch, ResponseBatch, WorkerLost
from foveate.cluster.ray.model_deployment import ModelDeployment
from foveate.cluster.ray.transport import RayTransport
from foveate.core.chat import ChatCall, ChatEnded
from foveate.core.model import ModelCard
from tests.support.fake_runner import FakeRunner
from tests.support.ray_handles import LocalHandle

pytestmark = pytest.mark.anyio
CHAT = ChatEnvelope("gateway", 7, ChatCall("id", "fake", (), ()), None, None)


class ReplicaMethods:
    """Has the methods of a model deployment."""

    async def cards(self) -> Sequence[ModelCard]:
        return (FakeRunner().card,)

    async def run(self, request_batch: RequestBatch) -> AsyncIterator[ResponseBatch]:
        for worker in ("first", "second"):
            yield ResponseBatch(worker, (), {request_batch.sender: 0.5})

    async def chat(self, envelope: ChatEnvelope) -> AsyncIterator[ChatEventBatch]:
        ended = ChatEnded("stop", envelope.number, 0.0, 0.0)
        yield ChatEventBatch("first", (ended,), {envelope.sender: 0.5})


def transport(handle: LocalHandle) -> RayTransport:
    stand_in: Any = handle
    return RayTransport(stand_in)


async def test_cards_and_responses_come_from_the_replica() -> None:
    replicas = transport(LocalHandle(ReplicaMethods()))
    assert [card.name for card in await replicas.cards()] == ["fake"]
    responses = [response async for response in replicas.send(RequestBatch("gateway", ()))]
    assert [(response.worker, response.queue_wait_s) for response in responses] == [
        ("first", {"gateway": 0.5}), ("second", {"gateway": 0.5}),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("error", "words"), [(RayActorError(), "was lost"), (TaskCancelledError(), "was stopped")]
)
async def test_a_lost_replica_becomes_worker_lost(error: Exception, words: str) -> None:
    replicas = transport(LocalHandle(ReplicaMethods(), error))
    with pytest.raises(WorkerLost, match=words):
        async for _ in replicas.send(RequestBatch("gateway", ())):
            pass
    with pytest.raises(WorkerLost, match=words):
        async for _ in replicas.chat(CHAT):
            pass


async def test_the_events_of_a_chat_come_from_the_replica() -> None:
    replicas = transport(LocalHandle(ReplicaMethods()))
    (batch,) = [batch async for batch in replicas.chat(CHAT)]
    assert (batch.worker, batch.queue_wait_s, batch.events[0]) == (
        "first", {"gateway": 0.5}, ChatEnded("stop", 7, 0.0, 0.0),
    )  # fmt: skip
    inspect.signature(ModelDeployment.chat).bind(None, CHAT)


async def test_other_errors_pass_through() -> None:
    replicas = transport(LocalHandle(ReplicaMethods(), ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        async for _ in replicas.send(RequestBatch("gateway", ())):
            pass


async def test_cancel_reaches_every_replica_by_a_method_that_the_deployment_has() -> None:
    handle = LocalHandle(ReplicaMethods())
    await transport(handle).cancel("gateway", (1, 2))
    ((method, arguments),) = handle.broadcasts
    inspect.signature(getattr(ModelDeployment, method)).bind(None, *arguments)
    assert arguments == ("gateway", [1, 2])


async def test_a_failed_cancellation_is_ignored() -> None:
    await transport(LocalHandle(ReplicaMethods(), RayActorError())).cancel("gateway", (1,))
