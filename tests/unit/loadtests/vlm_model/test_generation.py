"""The comparison of answers with transformers' own."""

from pathlib import Path

import pytest

from foveate.models.vlm.runner import ChatRunner
from loadtests.vlm_model import generation
from tests.support.question_sets import chat_model, unanswered

pytestmark = pytest.mark.usefixtures("inference_on_one_thread")


def test_answers_are_equal_and_a_difference_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner: ChatRunner = chat_model(tmp_path).runner
    data = unanswered(tmp_path / "data")
    plans = ("full", "pool:4", "guided:4")
    assert generation.share_equal(runner, data, 6, plans) == 1.0
    original = generation.transformers_tokens
    seen: list[list[int]] = []

    def other(*parts: object) -> list[int]:
        seen.append(original(*parts))  # type: ignore[arg-type]
        return [] if len(seen) == 1 else seen[-1]

    monkeypatch.setattr(generation, "transformers_tokens", other)
    assert generation.share_equal(runner, data, 4, plans) == 3 / 4
