"""The thread of a device that runs forwards. Engines of several models take turns on it."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Protocol, TypeVar

from foveate.core.errors import DeviceHung
from foveate.engine.hang import HangDetector, HangLimits
from foveate.scheduling.device_demand import NO_DEMAND, DeviceDemand, combined_demand

T = TypeVar("T")


class DeviceTenant(Protocol):
    """One model on a shared device, as the device and the other models see it."""

    @property
    def virtual_deadline(self) -> float:
        """The earliest virtual deadline of the waiting requests; clock seconds, infinite if none waits."""
        ...

    @property
    def demand(self) -> DeviceDemand:
        """The device time that the waiting and the expected requests need."""
        ...

    def refuse_waiting(self, error: DeviceHung) -> None:
        """End the requests that wait with this error, because the device hangs."""
        ...


class DeviceExecutor:
    """One thread, and a lock on it that is granted to the tenant with the earliest virtual deadline.

    A tenant decides what to run only after it has got the lock.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, hang_limits: HangLimits | None = None
    ) -> None:
        self.clock = clock
        self.hangs = HangDetector(hang_limits or HangLimits(), self._refuse_waiting)
        """Watches the work on the thread, and the stacking of the next batches."""
        self._tenants: list[DeviceTenant] = []
        self._waiters: dict[DeviceTenant, asyncio.Future[None]] = {}
        self._locked, self._free_at = False, 0.0
        self.last_tenant: DeviceTenant | None = None
        """The tenant that holds the lock, or that held it last."""
        self.idle_turn = asyncio.Lock()
        """Held by the one model that may use the device while no request does."""
        self.last_batch_at = -math.inf
        """When the last batch of requests has ended; clock seconds."""
        self._thread = ThreadPoolExecutor(1, "compute")

    def add_tenant(self, tenant: DeviceTenant) -> None:
        """Include the demand of a model in what the others see."""
        self._tenants.append(tenant)

    def remove_tenant(self, tenant: DeviceTenant) -> None:
        """Undo `add_tenant`; does nothing if the tenant was not added."""
        if tenant in self._tenants:
            self._tenants.remove(tenant)

    @property
    def free_at(self) -> float:
        """When the running batch is predicted to be done; clock seconds, at least now."""
        return max(self._free_at, self.clock())

    def set_busy(self, predicted_s: float) -> None:
        """Announce a forward of this many seconds. Called by the tenant that holds the lock."""
        self._free_at = self.clock() + predicted_s

    @property
    def idle(self) -> bool:
        """Whether no tenant holds the lock."""
        return not self._locked

    @property
    def has_waiters(self) -> bool:
        """Whether a tenant waits for the lock. Any thread may ask."""
        return bool(self._waiters)

    def contended(self, tenant: DeviceTenant) -> bool:
        """Whether a tenant other than this one waits for the lock."""
        return any(waiter is not tenant for waiter in self._waiters)

    def demand_besides(self, tenant: DeviceTenant) -> DeviceDemand:
        """The demand of all tenants but this one."""
        if len(self._tenants) < 2:
            return NO_DEMAND
        return combined_demand([other.demand for other in self._tenants if other is not tenant])

    @asynccontextmanager
    async def turn(self, tenant: DeviceTenant) -> AsyncIterator[None]:
        """Hold the lock. It is granted once the device is free and no waiter has an earlier deadline."""
        if self._locked:
            await self._wait(tenant)
        self._locked, self.last_tenant = True, tenant
        try:
            yield
        finally:
            self._free_at = self.clock()
            if tenant in self._tenants:
                self.last_batch_at = self._free_at
            if len(self._tenants) > 1:
                # In the next iteration of the event loop: this tenant may ask again, and have the earliest
                # deadline once more.
                asyncio.get_running_loop().call_soon(self._grant_next)
            else:
                self._grant_next()

    async def _wait(self, tenant: DeviceTenant) -> None:
        granted = self._waiters[tenant] = asyncio.get_running_loop().create_future()
        try:
            await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled():  # it was granted to this tenant: pass it on
                self._grant_next()
            raise
        finally:
            self._waiters.pop(tenant, None)

    def _grant_next(self) -> None:
        """Grant the lock to the waiter with the earliest virtual deadline, or release it."""
        waiters = [tenant for tenant, granted in self._waiters.items() if not granted.done()]
        if waiters:
            self._waiters[min(waiters, key=lambda tenant: tenant.virtual_deadline)].set_result(None)
        else:
            self._locked = False

    def call(self, work: Callable[[], T]) -> T:
        """Run a function on the thread and block until it is done. For start-up only."""
        return self._thread.submit(work).result()

    async def run(self, work: Callable[[], T]) -> T:
        """Run a function on the thread without blocking the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _refuse_waiting(self, error: DeviceHung) -> None:
        for tenant in self._tenants:
            tenant.refuse_waiting(error)

    def close(self) -> None:
        """End the thread after the function that it runs now."""
        self._thread.shutdown(wait=False, cancel_futures=True)
