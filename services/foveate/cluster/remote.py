"""The cluster of a gateway whose workers are other processes."""

import asyncio
import math
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from time import monotonic

from foveate.cluster import Slot
from foveate.cluster.client import WorkerClient
from foveate.cluster.envelope import Transport
from foveate.core.chat import ChatCall, ChatEvent
from foveate.core.errors import DeadlineExceeded, Draining, SetupError, TooLate, UnknownModel
from foveate.core.model import ModelCard
from foveate.core.outcome import Outcome
from foveate.core.plan import Plan
from foveate.core.request import Objective, Request
from foveate.estimation.host_load import HostLoadMonitor


class RemoteCluster:
    """Serves the models of several deployments, each through one worker client."""

    def __init__(
        self,
        worker_clients: Sequence[WorkerClient],
        cards: Sequence[Sequence[ModelCard]],
        host_load: HostLoadMonitor,
    ) -> None:
        """cards: the models of each client's deployment. Raises SetupError if two models have one name."""
        self.host_load, self.draining, self._closed = host_load, False, False
        self.worker_clients = tuple(worker_clients)
        self._cards = {card.name: card for deployment in cards for card in deployment}
        self._client_of = {
            card.name: worker_client
            for worker_client, deployment in zip(worker_clients, cards, strict=True)
            for card in deployment
        }
        if len(self._cards) < sum(map(len, cards)):
            raise SetupError("two models have the same name; serve only one of them, or rename one")

    @classmethod
    async def connect(cls, transports: Sequence[Transport], host_load: HostLoadMonitor) -> "RemoteCluster":
        """Wait until each transport has a worker. The model of the first transport is the default."""
        cards = await asyncio.gather(*(transport.cards() for transport in transports))
        return cls([WorkerClient(transport) for transport in transports], cards, host_load)

    @property
    def ready(self) -> bool:
        """The cluster is not draining. `connect` has waited for the workers."""
        return not self.draining

    @property
    def problem(self) -> str:
        """Always empty: Ray watches the workers, and a request that a worker cannot run goes to another."""
        return ""

    @property
    def failed(self) -> bool:
        """Always false: the gateway runs no models."""
        return False

    def cards(self) -> dict[str, ModelCard]:
        """Served models by name; the first is the default."""
        return self._cards

    async def start(self) -> None:
        """Nothing to do: the workers are running."""

    def reserve(
        self,
        model: str,
        objective: Objective,
        plan: Plan | None,
        ready_in_s: float,
        call: ChatCall | None = None,
    ) -> Slot:
        """Refuse by the queue lengths that the workers reported last. The worker admits the request itself,
        and refuses it where these reports were out of date."""
        now, reports = monotonic(), self._client_of[model].reports
        if objective.deadline is not None and objective.deadline <= now:
            raise DeadlineExceeded("the deadline passed before the request was admitted")
        dues = [objective.deadline, call.first_token_by if call is not None else None]
        left_s = min((due - now for due in dues if due is not None), default=math.inf)
        queue_wait_s = reports.queue_wait_s(model)
        earliest_s = max(queue_wait_s, ready_in_s) + reports.transit_s
        if queue_wait_s and earliest_s > left_s:
            self._client_of[model].report_refusal(model, left_s)
            raise TooLate(
                f"the deadline is in {left_s:.3f} s, but every worker has a queue, and none can run the "
                f"request within {earliest_s:.3f} s; allow more time or retry later",
                max(0.1, queue_wait_s - left_s),
            )
        return Slot(self, model)

    async def submit(self, request: Request, reserved: bool = False) -> Outcome:
        """Send the request to a worker, which counts it as an arrival."""
        return await self._client(request.model).submit(request)

    async def chat(self, call: ChatCall, reserved: bool = False) -> AsyncGenerator[ChatEvent, None]:
        """Send the chat to a worker, which counts it as an arrival. See `Cluster.chat`."""
        async with aclosing(self._client(call.model).chats.chat(call)) as events:
            async for event in events:
                yield event

    def _client(self, model: str) -> WorkerClient:
        """The client of the workers of a model. Raises UnknownModel, Draining."""
        worker_client = self._client_of.get(model)
        if worker_client is None:
            raise UnknownModel(f"no model {model!r} is served here")
        if self._closed:
            raise Draining("the server is shutting down; send the request to another one")
        return worker_client

    def begin_drain(self) -> None:
        """Begin to drain: the gateway refuses new requests, and the ones that it has are still sent."""
        self.draining = True

    @property
    def unfinished(self) -> str:
        """The work that a drain waits for, as one clause; empty if there is none."""
        pending = sum(len(client.pending()) for client in self.worker_clients)
        return f"{pending} requests have no answer from a worker" if pending else ""

    async def drain(self, timeout_s: float) -> bool:
        """Send no more requests. True once all sent requests ended, False after the time-out."""
        self.draining = self._closed = True
        pending = [future for client in self.worker_clients for future in client.pending()]
        if not pending:
            return True
        _, left = await asyncio.wait(pending, timeout=timeout_s)
        return not left

    async def close(self) -> None:
        """Fail the requests that are left. A second call does nothing."""
        self.draining = self._closed = True
        for worker_client in self.worker_clients:
            worker_client.fail_pending(Draining("the server shut down before the request was complete"))
            worker_client.close()
