"""A transport to workers in the same process. All messages are pickled, as between two processes."""

import asyncio
import pickle
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from foveate.cluster.envelope import ChatEnvelope, ChatEventBatch, RequestBatch, ResponseBatch, WorkerLost
from foveate.cluster.worker import Worker
from foveate.core.model import ModelCard


class LoopbackTransport:
    """Sends each batch to the first worker that is not lost."""

    def __init__(self, *workers: Worker) -> None:
        self.workers = list(workers)
        self.lost = asyncio.Event()
        """Set by a test: the first worker is lost, with all its requests."""
        self.request_batches: list[RequestBatch] = []
        """All batches that were sent."""
        self.chats: list[ChatEnvelope] = []
        """All chats that were sent."""
        self.cancelled: list[int] = []
        """The numbers of all requests that were cancelled."""

    async def cards(self) -> Sequence[ModelCard]:
        return self.workers[0].cards()

    async def send(self, request_batch: RequestBatch) -> AsyncIterator[ResponseBatch]:
        self.request_batches.append(request_batch)
        async for message in self._messages(Worker.run, request_batch):
            yield message

    async def chat(self, envelope: ChatEnvelope) -> AsyncIterator[ChatEventBatch]:
        self.chats.append(envelope)
        async for message in self._messages(Worker.chat, envelope):
            yield message

    async def _messages(self, method: Callable[..., AsyncIterator[Any]], sent: Any) -> AsyncIterator[Any]:
        if not self.workers:
            raise WorkerLost("there is no worker")
        messages = method(self.workers[0], pickle.loads(pickle.dumps(sent)))  # noqa: S301
        try:
            while (message := await self._next(messages)) is not None:
                yield pickle.loads(pickle.dumps(message))  # noqa: S301
        finally:
            await messages.aclose()  # type: ignore[attr-defined]

    async def _next(self, messages: AsyncIterator[Any]) -> Any:
        """The next message, or None at the end. Raises WorkerLost when `lost` is set."""
        arriving = asyncio.ensure_future(anext(messages, None))
        losing = asyncio.ensure_future(self.lost.wait())
        try:
            await asyncio.wait([arriving, losing], return_when=asyncio.FIRST_COMPLETED)
            if arriving.done():
                return arriving.result()
        finally:
            arriving.cancel()
            losing.cancel()
            await asyncio.wait([arriving])
        if self.workers:
            del self.workers[0]
        self.lost.clear()
        raise WorkerLost("the worker is gone")

    async def cancel(self, sender: str, numbers: Sequence[int]) -> None:
        self.cancelled += numbers
        for worker in self.workers:
            worker.cancel(sender, numbers)


class SilentTransport(LoopbackTransport):
    """Its worker takes all requests and never answers."""

    async def send(self, request_batch: RequestBatch) -> AsyncIterator[ResponseBatch]:
        self.request_batches.append(request_batch)
        await asyncio.Event().wait()
        yield ResponseBatch("", (), {})

    async def chat(self, envelope: ChatEnvelope) -> AsyncIterator[ChatEventBatch]:
        self.chats.append(envelope)
        await asyncio.Event().wait()
        yield ChatEventBatch("", (), {})
