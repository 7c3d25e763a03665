"""The one thread of a device that runs forwards; engines of several models take turns on it."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Protocol, TypeVar

from foveate.scheduling.device_demand import NO_DEMAND, DeviceDemand, combined_demand

T = TypeVar("T")


class DeviceTenant(Protocol):
    """A model's engine, as those that share its device see it."""

    @property
    def virtual_deadline(self) -> float:
        """When the first turn of those who wait comes; infinite where nobody does. Clock seconds."""
        ...

    @property
    def demand(self) -> DeviceDemand:
        """What those who wait and those who come take of the device."""
        ...


class DeviceExecutor:
    """A thread, and the turn to use it: whose request is due first goes first, whatever model it is for.

    Whoever has the turn may decide late what to run.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._sharers: list[DeviceTenant] = []
        self._waiting: dict[DeviceTenant, asyncio.Future[None]] = {}
        self._taken, self._ends_at = False, 0.0
        self._thread = ThreadPoolExecutor(1, "compute")

    def join(self, sharer: DeviceTenant) -> None:
        self._sharers.append(sharer)

    def leave(self, sharer: DeviceTenant) -> None:
        if sharer in self._sharers:
            self._sharers.remove(sharer)

    @property
    def free_at(self) -> float:
        """When what runs is predicted to be done; clock seconds."""
        return max(self._ends_at, self.clock())

    def runs_for(self, predicted_s: float) -> None:
        """Said by who has the turn: about so long it is taken from now on."""
        self._ends_at = self.clock() + predicted_s

    def wanted(self, but: DeviceTenant) -> bool:
        """Whether another one waits for its turn."""
        return any(sharer is not but for sharer in self._waiting)

    def others(self, but: DeviceTenant) -> DeviceDemand:
        """What all the others want."""
        if len(self._sharers) < 2:
            return NO_DEMAND
        return combined_demand([sharer.demand for sharer in self._sharers if sharer is not but])

    @asynccontextmanager
    async def turn(self, sharer: DeviceTenant) -> AsyncIterator[None]:
        """The device, once it is free and nobody else is due earlier."""
        if self._taken:
            await self._wait(sharer)
        self._taken = True
        try:
            yield
        finally:
            self._ends_at = self.clock()
            if len(self._sharers) > 1:
                # Not before the one that leaves can ask again: it may be due first once more.
                asyncio.get_running_loop().call_soon(self._pass_on)
            else:
                self._pass_on()

    async def _wait(self, sharer: DeviceTenant) -> None:
        granted = self._waiting[sharer] = asyncio.get_running_loop().create_future()
        try:
            await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled():  # it was this one's turn, and is nobody's now
                self._pass_on()
            raise
        finally:
            self._waiting.pop(sharer, None)

    def _pass_on(self) -> None:
        waiting = [sharer for sharer, granted in self._waiting.items() if not granted.done()]
        if waiting:
            self._waiting[min(waiting, key=lambda sharer: sharer.virtual_deadline)].set_result(None)
        else:
            self._taken = False

    def call(self, work: Callable[[], T]) -> T:
        """Run something on the thread and block until it is done: for start-up."""
        return self._thread.submit(work).result()

    async def run(self, work: Callable[[], T]) -> T:
        """Run something on the thread without blocking the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
