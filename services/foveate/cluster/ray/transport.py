"""Calls to the replicas of a Ray Serve deployment, without Serve's HTTP proxies."""

from collections.abc import AsyncIterator, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from typing import Any

from grpc import RpcError
from ray import serve
from ray.exceptions import RayError, TaskCancelledError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from foveate.cluster.envelope import (
    ChatEnvelope,
    ChatEventBatch,
    RequestBatch,
    ResponseBatch,
    WorkerLost,
)
from foveate.core.model import ModelCard

CALL_ERRORS = (RayError, RayServeException, RpcError, CancelledError)
"""The exceptions of a call to a replica that has stopped or is stopping."""
CANCEL_TIMEOUT_S = 5.0
"""Seconds that all replicas together have to take a cancellation."""


class RayTransport:
    """Carries messages to the replicas of one model deployment. Serve chooses the replica of each batch."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        """handle: of a `ModelDeployment`; its methods are called by their names."""
        self._handle = direct(handle)
        self._streams = self._handle.options(stream=True)

    async def cards(self) -> Sequence[ModelCard]:
        """The models that the replicas serve. Waits until a replica is ready."""
        cards: Sequence[ModelCard] = await self._handle.cards.remote()
        return cards

    async def send(self, request_batch: RequestBatch) -> AsyncIterator[ResponseBatch]:
        """Send a batch to one replica and yield its responses as they arrive. Raises WorkerLost."""
        async for response_batch in _received(self._streams.run.remote(request_batch)):
            yield response_batch

    async def chat(self, envelope: ChatEnvelope) -> AsyncIterator[ChatEventBatch]:
        """Send a chat to one replica and yield the events of its answer. Raises WorkerLost."""
        async for events in _received(self._streams.chat.remote(envelope)):
            yield events

    async def cancel(self, sender: str, numbers: Sequence[int]) -> None:
        """Cancel these requests or chats of the sender on every replica. Failures are ignored."""
        with suppress(*CALL_ERRORS, TimeoutError):
            call = self._handle.broadcast("cancel", sender, list(numbers))
            await call.results_async(timeout_s=CANCEL_TIMEOUT_S)


async def _received(stream: Any) -> AsyncIterator[Any]:
    """The messages of a replica. Raises WorkerLost if it stops."""
    try:
        async for message in stream:
            yield message
    except TaskCancelledError as error:
        raise WorkerLost("the worker was stopped before it answered; retry later") from error
    except CALL_ERRORS as error:
        raise WorkerLost("the worker was lost before it answered; retry later") from error


def direct(handle: DeploymentHandle[Any]) -> DeploymentHandle[Any]:
    """The handle with calls over gRPC from replica to replica, in place of Ray's object store."""
    return handle.options(
        _by_reference=False, request_serialization="pickle", response_serialization="pickle"
    )


def replica_name() -> str:
    """The unique name of the replica that this code runs in."""
    return serve.get_replica_context().replica_id.unique_id
