"""Attainment and accuracy of an overload."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from foveate.core.model import Rung
from foveate.core.plan import Plan
from foveate.core.profile import ChatMeasurement
from foveate.models.vlm.runner import ChatRunner
from loadtests.chat import overload
from loadtests.chat.device import SharedDevice
from loadtests.chat.overload import DEADLINE_S, OverloadRun
from loadtests.chat.workload import ChatQuestion, TimedAnswer


@pytest.fixture
def laddered(runner: ChatRunner) -> Iterator[ChatRunner]:
    """The model with two measured plans."""
    chat = ChatMeasurement({}, "", 1.0, 1.0, 1.0, 1.0, {1: 1e-3}, {1: 1e-3, 8: 1e-3}, {1: 1e-3})
    light = Rung(Plan.parse("pool:4", runner.full), 1.0, 4, 0.9, chat=chat)
    card = runner.card
    runner.card = replace(card, ladder=(light, Rung(runner.full, 4.0, 16, 1.0, chat=chat)))
    yield runner
    runner.card = card


def test_late_and_refused_chats_count_as_missed(runner: ChatRunner, asked: list[ChatQuestion]) -> None:
    def answer(text: str, error: str = "") -> TimedAnswer:
        return TimedAnswer(text, (), runner.full, 0.1, 0.2, error=error)

    right, other, late, refused = asked[:4]
    run = OverloadRun(
        (right, other, late, refused),
        (answer(right.answer), answer("wrong"), answer(late.answer), answer("", "TooLate")),
        (0.1, DEADLINE_S, DEADLINE_S + 0.01, 0.01),
    )
    assert run.in_time == [True, True, False, False]
    assert run.figures("slo", runner) == {
        "overload_slo_attainment": 0.5,
        "overload_slo_accuracy": 0.5,
        "overload_slo_plan full": 0.5,
    }


def test_each_policy_gets_the_same_chats(
    laddered: ChatRunner, device: SharedDevice, asked: list[ChatQuestion], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overload, "DEADLINE_S", 20.0)
    figures = overload.measure(laddered, device, asked, 1)
    assert figures["overload_offered_per_s"] == pytest.approx(2 * figures["overload_full_per_s"], rel=0.01)
    assert figures["overload_unloaded_accuracy"] == pytest.approx(5 / 6, abs=1e-3)
    for name in ("slo", "full", "cheapest"):
        assert figures[f"overload_{name}_attainment"] == 1.0
    assert figures["overload_full_accuracy"] == figures["overload_unloaded_accuracy"]
    assert figures["overload_full_plan full"] == figures["overload_cheapest_plan pool:4"] == 1.0
    assert figures["overload_attainment"] == 1.0
