"""A link to workers in the same process, over which everything travels as it would between two."""

import asyncio
import pickle
from collections.abc import AsyncIterator, Sequence

from foveate.cluster.envelope import RequestBatch, ResponseBatch, WorkerLost
from foveate.cluster.worker import Worker
from foveate.core.model import ModelCard


class Loopback:
    """Groups go to the workers in turns, past those that are lost."""

    def __init__(self, *workers: Worker) -> None:
        self.workers = list(workers)
        self.lost = asyncio.Event()
        """Set: the worker at the head of the list is gone, with all that it has."""
        self.groups: list[RequestBatch] = []
        self.forgotten: list[int] = []

    async def cards(self) -> Sequence[ModelCard]:
        return self.workers[0].cards()

    async def send(self, group: RequestBatch) -> AsyncIterator[ResponseBatch]:
        if not self.workers:
            raise WorkerLost("there is no worker")
        self.groups.append(group)
        worker = self.workers[0]
        answers = worker.answer(pickle.loads(pickle.dumps(group)))  # noqa: S301
        try:
            while (found := await self._next(answers)) is not None:
                yield pickle.loads(pickle.dumps(found))  # noqa: S301
        finally:
            await answers.aclose()  # type: ignore[attr-defined]

    async def _next(self, answers: AsyncIterator[ResponseBatch]) -> ResponseBatch | None:
        coming = asyncio.ensure_future(anext(answers, None))
        losing = asyncio.ensure_future(self.lost.wait())
        try:
            await asyncio.wait([coming, losing], return_when=asyncio.FIRST_COMPLETED)
            if coming.done():
                return coming.result()
        finally:
            coming.cancel()
            losing.cancel()
            await asyncio.wait([coming])
        if self.workers:
            del self.workers[0]
        self.lost.clear()
        raise WorkerLost("the worker is gone")

    async def cancel(self, sender: str, numbers: Sequence[int]) -> None:
        self.forgotten += numbers
        for worker in self.workers:
            worker.cancel(sender, numbers)
