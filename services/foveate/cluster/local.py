"""Engines in this very process: the default, and all that one machine needs."""

import asyncio
from collections.abc import Sequence

from foveate.core.errors import UnknownModel
from foveate.core.metrics import Metrics
from foveate.core.model import ModelCard
from foveate.core.outcome import Outcome
from foveate.core.request import Request
from foveate.engine.engine import Engine
from foveate.engine.runner import Runner


class LocalCluster:
    """One engine a runner, all on the caller's event loop."""

    def __init__(
        self, runners: Sequence[Runner], metrics: Metrics, queue_items: int = 256, queue_bytes: int = 2**28
    ) -> None:
        self._runners, self._metrics = runners, metrics
        self._queue_items, self._queue_bytes = queue_items, queue_bytes
        self._cards = {runner.card.name: runner.card for runner in runners}
        self._engines: dict[str, Engine] = {}
        self.draining = False

    @property
    def ready(self) -> bool:
        return bool(self._engines) and not self.draining

    def cards(self) -> dict[str, ModelCard]:
        return self._cards

    async def start(self) -> None:
        for runner in self._runners:
            engine = Engine(runner, self._metrics, self._queue_items, self._queue_bytes)
            engine.start()
            self._engines[runner.card.name] = engine

    async def submit(self, request: Request) -> Outcome:
        engine = self._engines.get(request.model)
        if engine is None:
            raise UnknownModel(f"no model {request.model!r} is served here")
        return await engine.submit(request)

    async def drain(self, timeout_s: float) -> None:
        self.draining = True
        waits = [asyncio.ensure_future(engine.drain()) for engine in self._engines.values()]
        if waits:
            _, late = await asyncio.wait(waits, timeout=timeout_s)
            for wait in late:
                wait.cancel()

    async def close(self) -> None:
        self.draining = True
        for engine in self._engines.values():
            await engine.close()
