"""Turns on the device, and what the models that take them know of one another."""

import asyncio
from dataclasses import dataclass

import numpy as np
import pytest

from foveate.engine.device import DeviceExecutor
from foveate.scheduling.device_demand import NO_DEMAND, DeviceDemand

pytestmark = pytest.mark.anyio


@dataclass(eq=False)
class Model:
    virtual_deadline: float
    demand: DeviceDemand = NO_DEMAND


async def take(compute: DeviceExecutor, model: Model, order: list[Model]) -> None:
    async with compute.turn(model):
        order.append(model)
        await asyncio.sleep(0)


async def test_who_is_due_first_goes_first_whoever_came_first() -> None:
    compute, order = DeviceExecutor(), list[Model]()
    holder, late, early = Model(9.0), Model(2.0), Model(1.0)
    async with compute.turn(holder):
        waiting = [asyncio.create_task(take(compute, model, order)) for model in (late, early)]
        await asyncio.sleep(0.01)
        assert compute.wanted(holder) and compute.wanted(early)
        early.virtual_deadline, late.virtual_deadline = 3.0, 2.5  # it may change while they wait
    await asyncio.gather(*waiting)
    assert order == [late, early]
    assert not compute.wanted(holder)
    compute.close()


async def test_who_is_due_first_again_goes_again() -> None:
    compute, order = DeviceExecutor(), list[Model]()
    urgent, calm = Model(5.0), Model(60.0)
    for model in (urgent, calm):
        compute.join(model)

    async def serve(model: Model, times: int) -> None:
        for _ in range(times):
            await take(compute, model, order)

    async with compute.turn(calm):
        both = asyncio.gather(serve(calm, 4), serve(urgent, 4))
        await asyncio.sleep(0.01)
    await both
    assert order == 4 * [urgent] + 4 * [calm]
    compute.close()


async def test_who_leaves_while_waiting_or_as_its_turn_comes_holds_up_nobody() -> None:
    compute, order = DeviceExecutor(), list[Model]()
    holder, gone, chosen, last = Model(0.0), Model(1.0), Model(2.0), Model(3.0)
    async with compute.turn(holder):
        tasks = [asyncio.create_task(take(compute, model, order)) for model in (gone, chosen, last)]
        await asyncio.sleep(0.01)
        tasks[0].cancel()
        await asyncio.sleep(0.01)
    tasks[1].cancel()  # it has been given the turn, and has not begun
    await asyncio.wait_for(tasks[2], 5)
    assert order == [last]
    async with compute.turn(holder):  # and it is free again
        pass
    compute.close()


async def test_what_the_others_want_comes_in_the_order_of_turns() -> None:
    compute = DeviceExecutor()
    one = DeviceDemand(
        np.array([1.0, 4.0]), np.array([1.0, 4.0]), np.array([0.1, 0.2]), np.zeros(2), 0.5, 0.1, 2.0
    )
    two = DeviceDemand(np.array([2.0]), np.array([2.5]), np.array([0.3]), np.array([0.25]), 0.25, 0.25, 0.5)
    first, second, third = Model(1.0, one), Model(2.0, two), Model(9.0)
    for model in (first, second, third):
        compute.join(model)
    others = compute.others(third)
    assert others.virtual_deadline.tolist() == [1.0, 2.0, 4.0]
    assert others.waiting_s(1.0).tolist() == [0.1, 0.3, 0.2]
    assert others.waiting_s(0.5).tolist() == [0.05, 0.25, 0.1], "no less than they accept"
    assert (others.share(1.0), others.share(0.2), others.allowed_s) == (0.75, 0.35, 0.5)
    assert others.since(1.5).deadline.tolist() == [-0.5, 1.0, 2.5]
    assert compute.others(second).virtual_deadline.tolist() == [1.0, 4.0]
    compute.leave(first)
    assert not compute.others(second).any
    compute.close()


async def test_one_alone_has_no_others() -> None:
    compute = DeviceExecutor()
    model = Model(1.0, DeviceDemand(full_share=1.0, allowed_s=1.0))
    compute.join(model)
    assert compute.others(model) is NO_DEMAND
    compute.close()
