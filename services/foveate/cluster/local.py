"""The default cluster: all engines run in this process, on one machine."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any

from foveate.cluster import Slot
from foveate.core.chat import ChatCall, ChatEvent
from foveate.core.errors import BadRequest, SetupError, UnknownModel
from foveate.core.metrics import Metrics
from foveate.core.model import ModelCard
from foveate.core.outcome import Outcome
from foveate.core.plan import Plan
from foveate.core.request import Objective, Request
from foveate.core.settings import DEFAULTS
from foveate.engine.chat.engine import ChatEngine
from foveate.engine.chat.runner import ChatModel
from foveate.engine.device import DeviceExecutor
from foveate.engine.engine import Engine
from foveate.engine.hang import HangLimits
from foveate.engine.runner import HasSubmodels, Runner
from foveate.estimation.host_load import HostLoadMonitor
from foveate.scheduling.chat_policy import ChatFifo, ChatSloPolicy
from foveate.scheduling.fifo import Fifo
from foveate.scheduling.policy import DEFAULT_DEADLINE_S, PolicyFactory
from foveate.scheduling.slo_policy import SloPolicy


class LocalCluster:
    """One engine for each runner. All engines share the caller's event loop and one compute thread.

    Runners are created on the compute thread too: torch's threads belong to the thread that first used
    them, and a second set of them would compete for the same cores.
    """

    def __init__(
        self,
        factories: Sequence[Callable[[], Runner | ChatModel]],
        metrics: Metrics,
        queue_items: int = DEFAULTS["queue_items"],
        queue_bytes: int = DEFAULTS["queue_bytes"],
        policy: PolicyFactory = SloPolicy,
        default_deadline_s: float = DEFAULT_DEADLINE_S,
        host_load: HostLoadMonitor | None = None,
        hang_limits: HangLimits | None = None,
        chat_feature_bytes: int = DEFAULTS["chat_feature_bytes"],
        chat_prefix_bytes: int = DEFAULTS["chat_prefix_bytes"],
    ) -> None:
        """factories: create the runners; the first runner's model is the default. queue_items, queue_bytes:
        bounds of each engine's queue. default_deadline_s: seconds for requests without a deadline.
        hang_limits: when a forward counts as hanging. chat_feature_bytes, chat_prefix_bytes: bounds of the
        caches of each vision-language model.

        Raises SetupError if two models have the same name, and whatever a factory raises.
        """
        self._device = DeviceExecutor(hang_limits=hang_limits)
        runners = [self._device.call(factory) for factory in factories]
        self._runners = [served for runner in runners for served in (runner, *submodels_of(runner))]
        self._metrics, self._queue_items, self._queue_bytes = metrics, queue_items, queue_bytes
        self._policy, self._default_deadline_s = policy, default_deadline_s
        self._chat_feature_bytes, self._chat_prefix_bytes = chat_feature_bytes, chat_prefix_bytes
        self.host_load = host_load or HostLoadMonitor()
        self._cards = {runner.card.name: runner.card for runner in self._runners}
        if len(self._cards) < len(self._runners):
            raise SetupError("two models have the same name; serve only one of them, or rename one")
        self._engines: dict[str, Engine | ChatEngine] = {}
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
            engine = self._engine(runner)
            engine.start()
            self._engines[runner.card.name] = engine

    def _engine(self, runner: Any) -> Engine | ChatEngine:
        """The engine of a runner, by the task of its model."""
        parts = runner, self._metrics, self._queue_items, self._queue_bytes, self._device
        if runner.card.task != "chat":
            return Engine(
                *parts, policy=self._policy, default_deadline_s=self._default_deadline_s,
                host_load=self.host_load,
            )  # fmt: skip
        return ChatEngine(
            *parts, policy=ChatFifo if self._policy is Fifo else ChatSloPolicy,
            default_deadline_s=self._default_deadline_s, host_load=self.host_load,
            feature_bytes=self._chat_feature_bytes, prefix_bytes=self._chat_prefix_bytes,
        )  # fmt: skip

    def reserve(
        self,
        model: str,
        objective: Objective,
        plan: Plan | None,
        ready_in_s: float,
        call: ChatCall | None = None,
    ) -> Slot:
        """Reserve a place in the engine of the model, or refuse the request. Raises FoveateError.

        call: of a vision-language model, what is known of the call before its pictures are decoded.
        """
        engine = self._engines[model]
        if isinstance(engine, ChatEngine):
            engine.reserve(objective, plan, ready_in_s, call)
        else:
            engine.reserve(objective, plan, ready_in_s)
        return Slot(self, model)

    async def submit(self, request: Request, reserved: bool = False) -> Outcome:
        """Run one request. Raises FoveateError; UnknownModel if no engine serves the model."""
        engine = self._engines.get(request.model)
        if engine is None:
            raise UnknownModel(f"no model {request.model!r} is served here")
        if isinstance(engine, ChatEngine):
            raise BadRequest(f"{request.model} answers chats alone: ask it at /v1/chat/completions")
        return await engine.submit(request, reserved)

    async def chat(self, call: ChatCall, reserved: bool = False) -> AsyncGenerator[ChatEvent, None]:
        """Answer a chat. Closing the iterator, or cancelling its consumer, cancels the answer.

        reserved: `reserve` has counted this call as an arrival; use `Slot.chat`. Raises FoveateError: in the
        place of the first event if the call is not admitted, and of any other if it fails.
        """
        engine = self._engines.get(call.model)
        if engine is None:
            raise UnknownModel(f"no model {call.model!r} is served here")
        if not isinstance(engine, ChatEngine):
            raise BadRequest(f"{call.model} answers no chats")
        async with aclosing(engine.chat(call, reserved)) as events:
            async for event in events:
                yield event

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


def submodels_of(runner: Runner | ChatModel) -> Sequence[Runner]:
    """The further runners that a runner brings, each served as a model of its own."""
    return runner.submodels if isinstance(runner, HasSubmodels) else ()
