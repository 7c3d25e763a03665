"""The lock of the device, and the demand of the other models."""

import asyncio
import threading
from dataclasses import dataclass

import numpy as np
import pytest

from foveate.core.errors import DeviceHung
from foveate.engine.device import DeviceExecutor
from foveate.scheduling.device_demand import NO_DEMAND, DeviceDemand

pytestmark = pytest.mark.anyio


@dataclass(eq=False)
class StubTenant:
    """A tenant with a fixed deadline and demand."""

    virtual_deadline: float
    demand: DeviceDemand = NO_DEMAND

    def refuse_waiting(self, error: DeviceHung) -> None:
        raise AssertionError(error)


async def run_turn(device: DeviceExecutor, tenant: StubTenant, order: list[StubTenant]) -> None:
    async with device.turn(tenant):
        order.append(tenant)
        await asyncio.sleep(0)


async def test_the_earliest_deadline_goes_first_whatever_the_order_of_arrival() -> None:
    device, order = DeviceExecutor(), list[StubTenant]()
    holder, late, early = StubTenant(9.0), StubTenant(2.0), StubTenant(1.0)
    async with device.turn(holder):
        waiting = [asyncio.create_task(run_turn(device, tenant, order)) for tenant in (late, early)]
        await asyncio.sleep(0.01)
        assert device.contended(holder) and device.contended(early)
        early.virtual_deadline, late.virtual_deadline = 3.0, 2.5  # deadlines may change while tenants wait
    await asyncio.gather(*waiting)
    assert order == [late, early]
    assert not device.contended(holder)
    device.close()


async def test_a_tenant_may_have_the_earliest_deadline_again() -> None:
    device, order = DeviceExecutor(), list[StubTenant]()
    urgent, calm = StubTenant(5.0), StubTenant(60.0)
    for tenant in (urgent, calm):
        device.add_tenant(tenant)

    async def serve(tenant: StubTenant, times: int) -> None:
        for _ in range(times):
            await run_turn(device, tenant, order)

    async with device.turn(calm):
        both = asyncio.gather(serve(calm, 4), serve(urgent, 4))
        await asyncio.sleep(0.01)
    await both
    assert order == 4 * [urgent] + 4 * [calm]
    device.close()


async def test_a_waiter_that_is_cancelled_does_not_block_the_others() -> None:
    device, order = DeviceExecutor(), list[StubTenant]()
    holder, cancelled, chosen, last = StubTenant(0.0), StubTenant(1.0), StubTenant(2.0), StubTenant(3.0)
    async with device.turn(holder):
        tasks = [asyncio.create_task(run_turn(device, tenant, order)) for tenant in (cancelled, chosen, last)]
        await asyncio.sleep(0.01)
        tasks[0].cancel()
        await asyncio.sleep(0.01)
    tasks[1].cancel()  # the lock has been granted to it, and it has not begun
    await asyncio.wait_for(tasks[2], 5)
    assert order == [last]
    async with device.turn(holder):  # the lock is free again
        pass
    device.close()


async def test_the_demand_of_the_other_tenants_is_combined() -> None:
    device = DeviceExecutor()
    demand = DeviceDemand(np.array([2.0]), np.array([2.5]), np.array([0.3]), np.array([0.25]), allowed_s=0.5)
    first, second = StubTenant(1.0), StubTenant(2.0, demand)
    device.add_tenant(first)
    assert device.demand_besides(first) is NO_DEMAND, "a single tenant shares the device with no other"
    device.add_tenant(second)
    assert device.demand_besides(first).deadline.tolist() == [2.5]
    assert device.demand_besides(second) is NO_DEMAND
    device.remove_tenant(second)
    device.remove_tenant(second)
    assert device.demand_besides(first) is NO_DEMAND
    device.close()


async def test_the_device_is_free_when_the_running_batch_is_predicted_to_end() -> None:
    now = 10.0
    device, tenant = DeviceExecutor(lambda: now), StubTenant(1.0)
    assert device.free_at == 10.0
    async with device.turn(tenant):
        device.set_busy(2.0)
        assert device.free_at == 12.0
        now = 13.0
        assert device.free_at == 13.0
        now = 10.5
    assert device.free_at == 10.5, "the batch ended earlier than predicted"
    device.close()


async def test_functions_run_on_one_thread() -> None:
    device = DeviceExecutor()
    idents = [device.call(threading.get_ident)] + [await device.run(threading.get_ident) for _ in range(3)]
    assert len(set(idents)) == 1 and idents[0] != threading.get_ident()
    device.close()
