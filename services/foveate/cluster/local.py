"""The default cluster: all engines run in this process, on one machine."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence

from foveate.cluster import Slot
from foveate.core.chat import ChatCall, ChatEvent
from foveate.core.errors import SetupError, UnknownModel
from foveate.core.metrics import Metrics
from foveate.core.model import ModelCard
from foveate.core.outcome import Outcome
from foveate.core.plan import Plan
from foveate.core.request import Objective, Request
from foveate.core.settings import DEFAULTS
from foveate.engine.device import DeviceExecutor
from foveate.engine.engine import Engine
from foveate.engine.hang import HangLimits
from foveate.engine.runner import HasSubmodels, Runner
from foveate.estimation.host_load import HostLoadMonitor
from foveate.scheduling.policy import DEFAULT_DEADLINE_S, PolicyFactory
from foveate.scheduling.slo_policy import SloPolicy


class LocalCluster:
    """One engine for each runner. All engines share the caller's event loop and one compute thread.

    Runners are created on the compute thread too: torch's threads belong to the thread that first used
    them, and a second set of them would compete for the same cores.
    """

    def __init__(
        self,
        factories: Sequence[Callable[[], Runner]],
        metrics: Metrics,
        queue_items: int = DEFAULTS["queue_items"],
        queue_bytes: int = DEFAULTS["queue_bytes"],
        policy: PolicyFactory = SloPolicy,
        default_deadline_s: float = DEFAULT_DEADLINE_S,
        host_load: HostLoadMonitor | None = None,
        hang_limits: HangLimits | None = None,
    ) -> None:
        """factories: create the runners; the first runner's model is the default. queue_items, queue_bytes:
        bounds of each engine's queue. default_deadline_s: seconds for requests without a deadline.
        hang_limits: when a forward counts as hanging.

        Raises SetupError if two models have the same name, and whatever a factory raises.
        """
        self._device = DeviceExecutor(hang_limits=hang_limits)
        runners = [self._device.call(factory) for factory in factories]
        self._runners = [served for runner in runners for served in (runner, *submodels_of(runner))]
        self._metrics, self._queue_items, self._queue_bytes = metrics, queue_items, queue_bytes
        self._policy, self._default_deadline_s = policy, default_deadline_s
        self.host_load = host_load or HostLoadMonitor()
        self._cards = {runner.card.name: runner.card for runner in self._runners}
        if len(self._cards) < len(self._runners):
            raise SetupError("two models have the same name; serve only one of them, or rename one")
        self._engines: dict[str, Engine] = {}
        self.draining = False

    @property
    def ready(self) -> bool:
        """All engines run, the device responds, and the cluster is not draining."""
        return bool(self._engines) and not self.draining and not self.problem

    @property
    def problem(self) -> str:
        """Why requests cannot run now, as one clause; empty if they can."""
        stopped = [name for name, engine in self._engines.items() if not engine.serving]
        if stopped:
            return f"the engine of {stopped[0]} has failed"
        return self._device.hangs.describe(hanging_only=True) if self._device.hangs.hangs else ""

    @property
    def failed(self) -> bool:
        """Only a restart of the process helps: an engine has failed, or a forward was given up."""
        stopped = any(not engine.serving for engine in self._engines.values())
        return (stopped or self._device.hangs.lost) and not self.draining

    def cards(self) -> dict[str, ModelCard]:
        """Served models by name; the first is the default."""
        return self._cards

    async def start(self) -> None:
        """Start one engine for each runner."""
        for runner in self._runners:
            engine = Engine(
                runner, self._metrics, self._queue_items, self._queue_bytes, self._device,
                policy=self._policy, default_deadline_s=self._default_deadline_s, host_load=self.host_load,
            )  # fmt: skip
            engine.start()
            self._engines[runner.card.name] = engine

    def reserve(
        self,
        model: str,
        objective: Objective,
        plan: Plan | None,
        ready_in_s: float,
        call: ChatCall | None = None,
    ) -> Slot:
        """Reserve a place in the engine of the model, or refuse the request. Raises FoveateError."""
        self._engines[model].reserve(objective, plan, ready_in_s)
        return Slot(self, model)

    async def submit(self, request: Request, reserved: bool = False) -> Outcome:
        """Run one request. Raises FoveateError; UnknownModel if no engine serves the model."""
        engine = self._engines.get(request.model)
        if engine is None:
            raise UnknownModel(f"no model {request.model!r} is served here")
        return await engine.submit(request, reserved)

    async def chat(self, call: ChatCall, reserved: bool = False) -> AsyncGenerator[ChatEvent, None]:
        """Answer a chat. Raises FoveateError; UnknownModel if no engine serves the model."""
        raise UnknownModel(f"no model {call.model!r} answers chats here")
        yield

    def count_refused(self, model: str, allowed_s: float) -> None:
        """Count a request that a gateway refused by `queue_wait_s` as demand.

        allowed_s: seconds that the request had to its deadline.
        """
        self._engines[model].count_refused(allowed_s)

    def queue_wait_s(self) -> dict[str, float]:
        """By model, predicted seconds until all queued requests have run on their cheapest rungs."""
        return {name: engine.queue_wait_s for name, engine in self._engines.items()}

    async def wait_responds(self) -> None:
        """Return once the device does not hang."""
        await self._device.hangs.wait_responds()

    def begin_drain(self) -> None:
        """Begin to drain: the gateway refuses new requests, and the ones that it has are still admitted."""
        self.draining = True

    @property
    def unfinished(self) -> str:
        """The work that a drain waits for, as one clause; empty if there is none."""
        requests = sum(engine.unfinished for engine in self._engines.values())
        parts = [self._device.hangs.describe(), f"{requests} requests wait or run" if requests else ""]
        return "; ".join(filter(None, parts))

    async def drain(self, timeout_s: float) -> bool:
        """Admit no more requests. True once all admitted requests ended and no forward runs.

        False after the time-out, or if a forward was given up as lost.
        """
        self.draining = True
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.gather(*(engine.drain() for engine in self._engines.values()))
        except TimeoutError:
            return False
        return not self._device.hangs.lost

    async def close(self) -> None:
        """Fail the requests that are left. A second call does nothing."""
        self.draining = True
        for engine in self._engines.values():
            await engine.close()


def submodels_of(runner: Runner) -> Sequence[Runner]:
    """The further runners that a runner brings, each served as a model of its own."""
    return runner.submodels if isinstance(runner, HasSubmodels) else ()
