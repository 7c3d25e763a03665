"""The served engine's answers beside those of transformers."""

import pytest

from foveate.models.vlm.runner import ChatRunner
from loadtests.chat import generate, greedy
from loadtests.chat.device import SharedDevice
from loadtests.chat.workload import ChatQuestion

PLANS = ("full", "pool:4", "guided:4")


def test_answers_are_equal_and_a_difference_is_counted(
    runner: ChatRunner, device: SharedDevice, asked: list[ChatQuestion], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert greedy.measure(runner, device, asked, PLANS) == {"greedy_questions": 6, "greedy_equal": 1.0}
    original, seen = generate.generate, list[list[list[int]]]()

    def other(*parts: object, **options: object) -> list[list[int]]:
        seen.append(original(*parts, **options))  # type: ignore[arg-type]
        return [[]] if len(seen) == 1 else seen[-1]

    monkeypatch.setattr(greedy, "generate", other)
    assert greedy.measure(runner, device, asked[:4], PLANS)["greedy_equal"] == 3 / 4
