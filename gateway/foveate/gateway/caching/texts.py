"""The cache of text embeddings: each text is embedded once, also for requests at the same time."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foveate.core.metrics import Metrics
from foveate.core.model import ZeroShot

TextEmbedding = NDArray[np.float32]
"""(D,), of length 1."""
EmbedText = Callable[[ZeroShot, str, str], Awaitable[TextEmbedding]]
"""Runs the text model on one text, for a tenant. Raises FoveateError."""
MAX_RUNNING = 64
"""Texts that are with the text model at one time. More would fill its queue, and gain nothing."""
ENTRY_BYTES = 256
"""Memory of an entry beside its text and its numbers, about."""
_Key = tuple[str, str, str]
"""Weights of the text model, tenant and text. Which labels were asked for must not be visible to others."""


@dataclass(slots=True)
class _TextFlight:
    """A text that is being embedded."""

    task: asyncio.Task[TextEmbedding]
    waiting: int = 0
    """Requests that wait for it."""


class TextEmbeddings:
    """Embeddings by text model, tenant and text, the least recently used ones evicted first.

    Use it only on the event loop's thread.
    """

    def __init__(self, embed: EmbedText, max_bytes: int, metrics: Metrics) -> None:
        """max_bytes: bound of all entries together; 0 keeps none."""
        self._embed, self.max_bytes, self.bytes = embed, max_bytes, 0
        self._entries: OrderedDict[_Key, TextEmbedding] = OrderedDict()
        self._flights: dict[_Key, _TextFlight] = {}
        self._running = asyncio.Semaphore(MAX_RUNNING)
        counter = metrics.cache_requests
        self._counts = {result: counter.labels("texts", result) for result in ("hit", "coalesced", "miss")}
        metrics.cache_used.labels("texts").set_function(lambda: self.bytes)

    async def rows(self, zero_shot: ZeroShot, tenant: str, texts: Sequence[str]) -> NDArray[np.float32]:
        """The embeddings of N different texts: (N, D). Raises FoveateError if one cannot be embedded.

        A text goes on being embedded as long as a request waits for it.
        """
        rows: list[TextEmbedding | None] = []
        joined: dict[int, tuple[_Key, _TextFlight]] = {}
        for number, text in enumerate(texts):
            key = zero_shot.weights, tenant, text
            row = self._entries.get(key)
            rows.append(row)
            if row is not None:
                self._entries.move_to_end(key)
                self._counts["hit"].inc()
            else:
                joined[number] = key, self._join(key, zero_shot)
        try:
            for number, (_, flight) in joined.items():
                rows[number] = await asyncio.shield(flight.task)
        finally:
            for key, flight in joined.values():
                self._leave(key, flight)
        return np.stack([row for row in rows if row is not None])

    def _join(self, key: _Key, zero_shot: ZeroShot) -> _TextFlight:
        flight = self._flights.get(key)
        self._counts["miss" if flight is None else "coalesced"].inc()
        if flight is None:
            flight = self._flights[key] = _TextFlight(asyncio.create_task(self._run(key, zero_shot)))
        flight.waiting += 1
        return flight

    def _leave(self, key: _Key, flight: _TextFlight) -> None:
        """A request has its text, or does not wait any longer. Without requests, the text is given up."""
        flight.waiting -= 1
        if not flight.waiting and not flight.task.done():
            flight.task.cancel()
            self._flights.pop(key, None)
        elif flight.task.done() and not flight.task.cancelled():
            flight.task.exception()  # it is known: another text of the same request has failed first

    async def _run(self, key: _Key, zero_shot: ZeroShot) -> TextEmbedding:
        own = asyncio.current_task()
        try:
            async with self._running:
                embedding = await self._embed(zero_shot, *key[1:])
            self._keep(key, embedding)
            return embedding
        finally:
            flight = self._flights.get(key)
            if flight is not None and flight.task is own:
                del self._flights[key]

    def _keep(self, key: _Key, embedding: TextEmbedding) -> None:
        size = _entry_bytes(key, embedding)
        if size > self.max_bytes or key in self._entries:
            return
        # A row of a batch would keep the whole batch in memory.
        self._entries[key] = embedding.copy() if embedding.base is not None else embedding
        self.bytes += size
        while self.bytes > self.max_bytes:
            oldest, row = self._entries.popitem(last=False)
            self.bytes -= _entry_bytes(oldest, row)


def _entry_bytes(key: _Key, embedding: TextEmbedding) -> int:
    return ENTRY_BYTES + 4 * len(key[-1]) + embedding.nbytes
