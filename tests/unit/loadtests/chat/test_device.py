"""Engines of the bench on one device."""

import asyncio

from foveate.models.vlm.runner import ChatRunner
from loadtests.chat.device import SharedDevice, serving
from loadtests.chat.workload import ChatQuestion, ask


def test_a_device_outlives_its_engines(
    runner: ChatRunner, device: SharedDevice, asked: list[ChatQuestion]
) -> None:
    async def answer() -> str:
        async with serving(runner, device) as engine:
            return (await ask(engine, asked[0].call(8, runner.full))).text

    assert asyncio.run(answer()) == asyncio.run(answer())
    assert device.call(lambda: 1) == 1
    assert runner.free_slots == runner.slots
