"""Runs the request batches and the chats that gateways send, on engines in its own process."""

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import replace
from time import monotonic
from typing import Any

from foveate.cluster.envelope import (
    MAX_BATCH_BYTES,
    ChatEnvelope,
    ChatEventBatch,
    RequestBatch,
    RequestEnvelope,
    ResponseBatch,
    ResponseEnvelope,
)
from foveate.cluster.local import LocalCluster
from foveate.core.chat import ChatCall, ChatEvent, ChatToken
from foveate.core.errors import DeviceHung, FoveateError, RunFailed
from foveate.core.model import ModelCard
from foveate.core.outcome import Outcome
from foveate.core.request import Request

log = logging.getLogger(__name__)


class Worker:
    """Serves the models of one local cluster to any number of gateways."""

    def __init__(self, cluster: LocalCluster, name: str) -> None:
        """name: differs from the names of the deployment's other workers."""
        self.cluster, self.name = cluster, name
        self._running: dict[tuple[str, int], asyncio.Task[None]] = {}

    def cards(self) -> Sequence[ModelCard]:
        """The served models; the model of the deployment comes first."""
        return tuple(self.cluster.cards().values())

    async def run(self, request_batch: RequestBatch) -> AsyncIterator[ResponseBatch]:
        """Run the requests. Each response is yielded once it is ready, with the others that are ready then.

        After requests that were refused because the device hangs, the iterator ends when it responds again.
        Closing the iterator cancels the requests that still run.
        """
        for model, allowed_s in request_batch.refused.items():
            for seconds in allowed_s:
                self.cluster.count_refused(model, seconds)
        ready: list[ResponseEnvelope] = []
        task_ended = asyncio.Event()
        tasks = [
            self._start(request_batch.sender, envelope, ready, task_ended)
            for envelope in request_batch.envelopes
        ]
        hung = False
        try:
            while not all(task.done() for task in tasks) or ready:
                if not ready:
                    task_ended.clear()
                    await task_ended.wait()
                count = fitting_count(ready)
                responses, ready[:] = tuple(ready[:count]), ready[count:]
                if responses:
                    yield ResponseBatch(self.name, responses, self.cluster.queue_wait_s())
                    hung = hung or any(isinstance(response.outcome, DeviceHung) for response in responses)
            if hung:
                # Ray sends requests to the replica with the fewest open calls. A replica that refuses all of
                # them at once would get most of them.
                await self.cluster.wait_responds()
        finally:
            for task in tasks:
                task.cancel()

    async def chat(self, envelope: ChatEnvelope) -> AsyncIterator[ChatEventBatch]:
        """Answer a chat. Events are yielded once they are ready, with the others that are ready then.

        Closing the iterator cancels the answer. After a chat that was refused because the device hangs, it
        ends when the device responds again, as of `run`.
        """
        ready: list[ChatEvent | FoveateError] = []
        changed, hung = asyncio.Event(), False
        task = self._track(
            (envelope.sender, envelope.number), self._answer(envelope, ready, changed), changed
        )
        try:
            while not task.done() or ready:
                if not ready:
                    changed.clear()
                    await changed.wait()
                events, ready[:] = tuple(ready), []
                if events:
                    tokens_alone = all(isinstance(event, ChatToken) for event in events)
                    waits_s = None if tokens_alone else self.cluster.queue_wait_s()
                    yield ChatEventBatch(self.name, events, waits_s)
                    hung = isinstance(events[-1], DeviceHung)
            if hung:
                await self.cluster.wait_responds()
        finally:
            task.cancel()

    async def _answer(
        self, envelope: ChatEnvelope, ready: list[ChatEvent | FoveateError], changed: asyncio.Event
    ) -> None:
        """Answer a chat: append its events to `ready`, its failure in place of the last one."""
        try:
            async with aclosing(self.cluster.chat(call_with_local_deadlines(envelope))) as events:
                async for event in events:
                    ready.append(event)
                    changed.set()
        except FoveateError as error:
            ready.append(error.with_traceback(None))
        except Exception:
            log.exception("chat %s failed", envelope.call.id)
            ready.append(RunFailed("the server failed on this request"))

    def cancel(self, sender: str, numbers: Sequence[int]) -> None:
        """Cancel requests and chats of a sender. Requests that ended or run on another worker are ignored."""
        for number in numbers:
            task = self._running.get((sender, number))
            if task is not None:
                task.cancel()

    def _start(
        self, sender: str, envelope: RequestEnvelope, ready: list[ResponseEnvelope], ended: asyncio.Event
    ) -> asyncio.Task[None]:
        """A task that runs one request, appends its response to `ready` and sets `ended`."""

        async def respond() -> None:
            outcome = await self._outcome(with_local_deadline(envelope))
            ready.append(ResponseEnvelope(envelope.number, outcome))

        return self._track((sender, envelope.number), respond(), ended)

    def _track(
        self, key: tuple[str, int], work: Coroutine[Any, Any, None], ended: asyncio.Event
    ) -> asyncio.Task[None]:
        """A task that `cancel` finds by its key, and that sets `ended` at its end."""

        def finish(task: asyncio.Task[None]) -> None:
            ended.set()
            # A gateway that lost the connection sends the request again: then the key has a newer task.
            if self._running.get(key) is task:
                del self._running[key]

        task = self._running[key] = asyncio.create_task(work)
        task.add_done_callback(finish)
        return task

    async def _outcome(self, request: Request) -> Outcome | FoveateError:
        """Run a request, and return its failure in place of raising it."""
        try:
            return await self.cluster.submit(request)
        except FoveateError as error:
            return error.with_traceback(None)
        except Exception:
            log.exception("request %s failed", request.id)
            return RunFailed("the server failed on this request")


def fitting_count(responses: Sequence[ResponseEnvelope]) -> int:
    """How many of the responses fit into one batch, from the first on; at least 1."""
    sizes = itertools.accumulate(response.nbytes for response in responses)
    return max(1, sum(size <= MAX_BATCH_BYTES for size in sizes))


def with_local_deadline(envelope: RequestEnvelope) -> Request:
    """The request with its deadline on this process's monotonic clock."""
    request = envelope.request
    if envelope.remaining_s is None:
        return request
    objective = replace(request.objective, deadline=monotonic() + envelope.remaining_s)
    return replace(request, objective=objective)


def call_with_local_deadlines(envelope: ChatEnvelope) -> ChatCall:
    """The chat with its deadlines on this process's monotonic clock."""
    now, call = monotonic(), envelope.call
    if envelope.remaining_s is not None:
        call = replace(call, objective=replace(call.objective, deadline=now + envelope.remaining_s))
    if envelope.first_token_in_s is not None:
        call = replace(call, first_token_by=now + envelope.first_token_in_s)
    return call
