"""Engines in this very process: the default, and all that one machine needs."""

import asyncio
from collections.abc import Callable, Sequence

from foveate.cluster import Slot
from foveate.core.errors import SetupError, UnknownModel
from foveate.core.metrics import Metrics
from foveate.core.model import ModelCard
from foveate.core.outcome import Outcome
from foveate.core.plan import Plan
from foveate.core.request import Objective, Request
from foveate.engine.device import DeviceExecutor
from foveate.engine.engine import Engine
from foveate.engine.runner import HasSubmodels, Runner
from foveate.estimation.host_load import HostLoadMonitor
from foveate.scheduling.policy import DEFAULT_DEADLINE_S, PolicyFactory
from foveate.scheduling.slo_policy import SloPolicy


class LocalCluster:
    """One engine a runner, all on the caller's event loop and one compute thread.

    Runners are made on that thread too: the threads torch computes with belong to the thread that
    first used them, and a second set would compete for the same cores.
    """

    def __init__(
        self,
        factories: Sequence[Callable[[], Runner]],
        metrics: Metrics,
        queue_items: int = 1024,
        queue_bytes: int = 2**28,
        policy: PolicyFactory = SloPolicy,
        default_deadline_s: float = DEFAULT_DEADLINE_S,
        host: HostLoadMonitor | None = None,
    ) -> None:
        self._compute = DeviceExecutor()
        made = [self._compute.call(make) for make in factories]
        self._runners = [one for runner in made for one in (runner, *submodels_of(runner))]
        self._metrics, self._queue_items, self._queue_bytes = metrics, queue_items, queue_bytes
        self._policy, self._default_deadline_s = policy, default_deadline_s
        self.host = host or HostLoadMonitor()
        self._cards = {runner.card.name: runner.card for runner in self._runners}
        if len(self._cards) < len(self._runners):
            raise SetupError("two of the models have the same name, and requests could not tell them apart")
        self._engines: dict[str, Engine] = {}
        self.draining = False

    @property
    def ready(self) -> bool:
        engines = self._engines.values()
        return bool(engines) and all(engine.serving for engine in engines) and not self.draining

    def cards(self) -> dict[str, ModelCard]:
        return self._cards

    async def start(self) -> None:
        for runner in self._runners:
            engine = Engine(
                runner, self._metrics, self._queue_items, self._queue_bytes, self._compute,
                policy=self._policy, default_deadline_s=self._default_deadline_s, host_load=self.host,
            )  # fmt: skip
            engine.start()
            self._engines[runner.card.name] = engine

    def reserve(self, model: str, objective: Objective, plan: Plan | None, ready_in_s: float) -> Slot:
        self._engines[model].reserve(objective, plan, ready_in_s)
        return Slot(self, model)

    async def submit(self, request: Request, reserved: bool = False) -> Outcome:
        engine = self._engines.get(request.model)
        if engine is None:
            raise UnknownModel(f"no model {request.model!r} is served here")
        return await engine.submit(request, reserved)

    def refused(self, model: str, allowed_s: float) -> None:
        """A gateway has sent somebody away by what `ahead_s` had told it."""
        self._engines[model].count_refused(allowed_s)

    def ahead_s(self) -> dict[str, float]:
        """By model, seconds until whatever waits has run, each at the least that it accepts."""
        return {name: engine.queue_wait_s for name, engine in self._engines.items()}

    @property
    def failed(self) -> bool:
        """An engine's loop has ended by itself."""
        return any(not engine.serving for engine in self._engines.values()) and not self.draining

    async def drain(self, timeout_s: float) -> bool:
        self.draining = True
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.gather(*(engine.drain() for engine in self._engines.values()))
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        self.draining = True
        for engine in self._engines.values():
            await engine.close()


def submodels_of(runner: Runner) -> Sequence[Runner]:
    """What is served beside a runner."""
    return runner.submodels if isinstance(runner, HasSubmodels) else ()
