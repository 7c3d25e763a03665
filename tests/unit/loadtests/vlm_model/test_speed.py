"""The speed-ups of the bench of the vision-language model."""

from pathlib import Path

import pytest

from foveate.models.vlm.runner import ChatRunner
from loadtests.vlm_model import speed
from tests.support import chat_models
from tests.support.question_sets import unanswered

pytestmark = pytest.mark.usefixtures("inference_on_one_thread")


def test_speeds_are_medians_with_their_ratio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "FEW", "pool:4")
    runner = ChatRunner(chat_models.load(tmp_path), slot_tokens=128)
    figures = speed.measure(runner, unanswered(tmp_path / "data"))
    parts = {f"{part} {name} ms" for part in ("prefill", "first token") for name in ("full", "16")}
    assert figures.keys() == parts | {"prefill_speedup_16", "first_token_speedup_16"}
    assert all(value > 0 for value in figures.values())
    assert figures["first token full ms"] > figures["prefill full ms"]
    assert runner.cache.free_slots == runner.cache.shape.slots
