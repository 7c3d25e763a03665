"""Prefills of chats that are over."""

from foveate.models.vlm.runner import ChatRunner
from loadtests.chat import expired
from loadtests.chat.device import SharedDevice
from loadtests.chat.generate import features, prompts
from loadtests.chat.workload import ChatQuestion


def test_expired_chats_reach_no_prefill(
    runner: ChatRunner, device: SharedDevice, asked: list[ChatQuestion]
) -> None:
    figures = expired.measure(runner, device, asked * 3)
    assert figures["expired_prefills"] == 0 and figures["expired_offered"] == 18
    assert figures["expired_answered"] <= figures["expired_prefilled"] <= 18


def test_a_prefill_of_an_expired_chat_is_counted(runner: ChatRunner, asked: list[ChatQuestion]) -> None:
    model = expired.CountingModel(runner)
    made = prompts(runner, asked[:2], [features(runner, q, runner.full) for q in asked[:2]], runner.full)
    for number, expires in enumerate((0.0, float("inf"))):
        model.expires[number] = expires
        sequence = model.sequence(made[number], asked[number].call(2, seed=number).options)
        model.prefill([sequence], [sequence.unfilled])
        model.cancel([sequence])
        assert (model.prefills, model.expired) == (number + 1, 1)
