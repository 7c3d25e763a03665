"""The server with static batches."""

import asyncio

import pytest

from foveate.models.vlm.runner import ChatRunner
from loadtests.chat.device import SharedDevice
from loadtests.chat.generate import features, generate_answers
from loadtests.chat.padded_server import PaddedServer
from loadtests.chat.workload import ChatQuestion

pytestmark = pytest.mark.usefixtures("inference_on_one_thread")


def test_it_runs_what_waits_up_to_the_slots(
    runner: ChatRunner, device: SharedDevice, asked: list[ChatQuestion]
) -> None:
    pictures = [features(runner, question, runner.full) for question in asked]
    lengths = [2, 5, 3, 2, 4, 1]
    server = PaddedServer(runner, device)

    async def run() -> list[list[int]]:
        serving = asyncio.create_task(server.serve())
        rows = zip(asked, pictures, lengths, strict=True)
        answers = await asyncio.gather(*(server.ask(*row) for row in rows))
        serving.cancel()
        return answers

    answers = asyncio.run(run())
    assert server.batches == [4, 2]
    whole = generate_answers(runner, asked, pictures, 5)
    assert answers == [row[:length] for row, length in zip(whole, lengths, strict=True)]


def test_a_failure_reaches_the_clients(
    runner: ChatRunner, device: SharedDevice, asked: list[ChatQuestion], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ArithmeticError

    monkeypatch.setattr("loadtests.chat.padded_server.generate_answers", fail)

    async def run() -> None:
        server = PaddedServer(runner, device)
        serving = asyncio.create_task(server.serve())
        with pytest.raises(ArithmeticError):
            await server.ask(asked[0], features(runner, asked[0], runner.full), 2)
        serving.cancel()

    asyncio.run(run())
