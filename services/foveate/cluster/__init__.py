"""Where engines run. The gateway knows only this protocol."""

from typing import Protocol

from foveate.core.model import ModelCard
from foveate.core.outcome import Outcome
from foveate.core.plan import Plan
from foveate.core.request import Objective, Request
from foveate.estimation.host_load import HostLoadMonitor


class Cluster(Protocol):
    """A place that answers requests."""

    @property
    def ready(self) -> bool:
        """Every model is loaded and warm, and new requests are taken."""
        ...

    @property
    def draining(self) -> bool: ...

    @property
    def host(self) -> HostLoadMonitor:
        """Where the gateway tells what it does on the cores that forwards run on."""
        ...

    def cards(self) -> dict[str, ModelCard]:
        """Served models by name; the first is the default."""
        ...

    async def start(self) -> None: ...

    def expect(self, model: str, objective: Objective, plan: Plan | None, ready_in_s: float) -> None:
        """A request has come, and can be run in so many seconds. Raises TooLate where that is too late
        already: told before anything is spent on it."""
        ...

    async def submit(self, request: Request) -> Outcome:
        """Run one request. Cancelling the caller cancels the request. Raises FoveateError."""
        ...

    async def drain(self, timeout_s: float) -> bool:
        """Refuse newcomers; True once what was admitted is done, False when the time is up before."""
        ...

    async def close(self) -> None:
        """Give whoever still waits a failure. Called again, it does nothing."""
        ...
