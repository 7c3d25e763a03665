"""Answers the groups that gateways send: engines in a process of their own."""

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from time import monotonic

from foveate.cluster.envelope import (
    GROUP_BYTES,
    RequestBatch,
    RequestEnvelope,
    ResponseBatch,
    ResponseEnvelope,
)
from foveate.cluster.local import LocalCluster
from foveate.core.errors import FoveateError, RunFailed
from foveate.core.model import ModelCard
from foveate.core.outcome import Outcome
from foveate.core.request import Request

log = logging.getLogger(__name__)


class Worker:
    """Serves one cluster's models to any number of gateways."""

    def __init__(self, cluster: LocalCluster, name: str) -> None:
        """name: tells it apart from the other workers of its deployment."""
        self.cluster, self.name = cluster, name
        self._running: dict[tuple[str, int], asyncio.Task[None]] = {}

    def cards(self) -> Sequence[ModelCard]:
        return tuple(self.cluster.cards().values())

    async def answer(self, group: RequestBatch) -> AsyncIterator[ResponseBatch]:
        """Each request's answer as soon as it is there, with those that are there by then too. Closing it
        ends what is left of the group."""
        done: list[ResponseEnvelope] = []
        some = asyncio.Event()

        async def one(envelope: RequestEnvelope) -> None:
            ended = await self._ended(arrived(envelope))
            done.append(ResponseEnvelope(envelope.number, ended))

        def over(task: asyncio.Task[None], key: tuple[str, int]) -> None:
            some.set()
            # The same request may have come again, from a gateway that took this worker for lost.
            if self._running.get(key) is task:
                del self._running[key]

        for model, allowed_s in group.refused.items():
            for seconds in allowed_s:
                self.cluster.refused(model, seconds)
        tasks = []
        for envelope in group.envelopes:
            key = group.sender, envelope.number
            task = self._running[key] = asyncio.create_task(one(envelope))
            task.add_done_callback(lambda task, key=key: over(task, key))  # type: ignore[misc]
            tasks.append(task)
        try:
            while not all(task.done() for task in tasks) or done:
                if not done:
                    some.clear()
                    await some.wait()
                count = fitting(done)
                found, done[:] = tuple(done[:count]), done[count:]
                if found:
                    yield ResponseBatch(self.name, found, self.cluster.ahead_s())
        finally:
            for task in tasks:
                task.cancel()

    def cancel(self, sender: str, numbers: Sequence[int]) -> None:
        """Nobody waits for these any more; others' and those that are done are none of its business."""
        for number in numbers:
            task = self._running.get((sender, number))
            if task is not None:
                task.cancel()

    async def _ended(self, request: Request) -> Outcome | FoveateError:
        try:
            return await self.cluster.submit(request)
        except FoveateError as error:
            return error.with_traceback(None)
        except Exception:
            log.exception("request %s failed", request.id)
            return RunFailed("the server failed on this request")


def fitting(answers: Sequence[ResponseEnvelope]) -> int:
    """How many of them travel together."""
    sizes = itertools.accumulate(answer.nbytes for answer in answers)
    return max(1, sum(size <= GROUP_BYTES for size in sizes))


def arrived(envelope: RequestEnvelope) -> Request:
    """The request with a deadline on the clock of this process."""
    request = envelope.request
    if envelope.left_s is None:
        return request
    objective = replace(request.objective, deadline=monotonic() + envelope.left_s)
    return replace(request, objective=objective)
