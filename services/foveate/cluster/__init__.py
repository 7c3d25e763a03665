"""Where engines run. The gateway sees only this protocol."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

from foveate.core.chat import ChatCall, ChatEvent
from foveate.core.model import ModelCard
from foveate.core.outcome import Outcome
from foveate.core.plan import Plan
from foveate.core.request import Objective, Request
from foveate.estimation.host_load import HostLoadMonitor


class Cluster(Protocol):
    """Serves models: in this process, or on workers elsewhere."""

    @property
    def ready(self) -> bool:
        """Every model is loaded and warm, requests can run, and the cluster is not draining."""
        ...

    @property
    def problem(self) -> str:
        """Why requests cannot run now, as one clause for probes and logs; empty if they can."""
        ...

    @property
    def failed(self) -> bool:
        """Only a restart of the process helps."""
        ...

    @property
    def draining(self) -> bool:
        """The gateway refuses new requests, and the cluster finishes the ones that it has."""
        ...

    @property
    def host_load(self) -> HostLoadMonitor:
        """Measures what the gateway does on the cores that forwards run on."""
        ...

    def cards(self) -> dict[str, ModelCard]:
        """Served models by name; the first is the default."""
        ...

    async def start(self) -> None:
        """Start serving."""
        ...

    def reserve(
        self,
        model: str,
        objective: Objective,
        plan: Plan | None,
        ready_in_s: float,
        call: ChatCall | None = None,
    ) -> "Slot":
        """Admit a request before its media are decoded, or refuse it.

        plan: the plan that the client pinned, if any; ready_in_s: predicted seconds until the media are
        decoded; call: a chat, with pictures that have no pixels yet. Raises TooLate if the predicted
        finish on the cheapest allowed plan is past the deadline, DeadlineExceeded, BadPlan.
        """
        ...

    async def submit(self, request: Request, reserved: bool = False) -> Outcome:
        """Run one request. Cancelling the caller cancels the request. Raises FoveateError.

        reserved: `reserve` has counted this request as an arrival; use `Slot.submit`.
        """
        ...

    def chat(self, call: ChatCall, reserved: bool = False) -> AsyncGenerator[ChatEvent, None]:
        """Answer a chat. Closing the iterator, or cancelling its consumer, cancels the answer.

        reserved: as of `submit`; use `Slot.chat`. The iterator raises FoveateError: in the place of the first
        event if the call is not admitted, and of any other if it fails.
        """
        ...

    def begin_drain(self) -> None:
        """Set `draining`. Requests that the gateway has accepted before are still admitted."""
        ...

    @property
    def unfinished(self) -> str:
        """The work that `drain` waits for, as one clause for the log; empty if there is none."""
        ...

    async def drain(self, timeout_s: float) -> bool:
        """Admit no more requests. True once all admitted requests ended, False after the time-out.

        Call it when the gateway has no more requests to submit, or gives them up.
        """
        ...

    async def close(self) -> None:
        """Fail the requests that are left. A second call does nothing."""
        ...


@dataclass(slots=True)
class Slot:
    """An admitted request whose media are not decoded yet."""

    cluster: Cluster
    model: str
    """The model that has counted the request."""
    used: bool = False
    """Whether the counted request has been submitted."""

    async def submit(self, request: Request) -> Outcome:
        """Run a request. Raises FoveateError.

        The first request to the reserved model is the one that was counted. Others, such as further tiles
        of the same image, count as arrivals of their own.
        """
        return await self.cluster.submit(request, self._use(request.model))

    async def chat(self, call: ChatCall) -> AsyncGenerator[ChatEvent, None]:
        """Answer a chat, as `Cluster.chat`."""
        async with aclosing(self.cluster.chat(call, self._use(call.model))) as events:
            async for event in events:
                yield event

    def _use(self, model: str) -> bool:
        """Whether a request to this model is the one that was counted."""
        reserved = not self.used and model == self.model
        self.used = self.used or reserved
        return reserved
