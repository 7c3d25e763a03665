"""The latency model of chats: seeded by stage, refitted by every step."""

import pytest

from foveate.core.model import Rung
from foveate.core.plan import Plan
from foveate.core.profile import ChatMeasurement
from foveate.estimation.chat_latency import QUESTION_TOKENS, ChatLatencyModel

FULL, LIGHT = Plan("m", 64), Plan("m", 64, reducer="pool:4")


def measured(encode_s: float, prefill_s: float, decode_s: float) -> ChatMeasurement:
    def stage(seconds: float) -> dict[int, float]:
        return {1: seconds, 8: 4 * seconds}

    return ChatMeasurement(
        {"count": 1.0}, "count", 1.0, 1.0, 1.0, 1.0, stage(encode_s), stage(prefill_s), stage(decode_s)
    )


LADDER = (
    Rung(LIGHT, 1.0, 16, 0.9, chat=measured(0.02, 0.004, 0.003)),
    Rung(FULL, 4.0, 48, 1.0, chat=measured(0.02, 0.010, 0.004)),
)


def test_the_profile_gives_the_first_predictions() -> None:
    model = ChatLatencyModel(LADDER)
    assert model.predict("encode", FULL, 1) == pytest.approx(0.02, rel=0.05)
    assert model.predict("encode", FULL, 8) == pytest.approx(0.08, rel=0.05)
    assert model.predict("prefill", FULL, 48 + QUESTION_TOKENS) == pytest.approx(0.010, rel=0.05)
    assert model.predict("prefill", FULL, 8 * (48 + QUESTION_TOKENS)) == pytest.approx(0.040, rel=0.05)
    assert model.step_s(LIGHT, 1) == pytest.approx(0.003, rel=0.05)
    assert model.start_s(LIGHT, 0, 32) == pytest.approx(0.004, rel=0.05)
    assert model.start_s(LIGHT, 0, 0) == 0.0
    # A prompt whose beginning is cached takes less.
    assert model.predict("prefill", FULL, QUESTION_TOKENS) < 0.7 * model.predict("prefill", FULL, 64)


def test_steps_correct_the_predictions_of_their_stage() -> None:
    model = ChatLatencyModel(LADDER)
    encode_s = model.predict("encode", FULL, 1)
    for _ in range(30):
        model.observe("decode", FULL, 4, 3 * 0.004)
    assert model.step_s(FULL, 4) == pytest.approx(0.012, rel=0.1)
    assert model.step_s(LIGHT, 4) > 1.2 * ChatLatencyModel(LADDER).step_s(LIGHT, 4)
    assert model.predict("encode", FULL, 1) == encode_s
    assert model.safety_factor > 1
    before = model.step_s(FULL, 4)
    for _ in range(5):
        model.decay()
    assert model.step_s(FULL, 4) < before


def test_a_model_without_a_profile_learns_from_its_first_steps() -> None:
    model = ChatLatencyModel([Rung(FULL, 1.0, 48, 1.0)])
    assert 0 < model.step_s(FULL, 1) < model.start_s(FULL, 1, 64)
    for _ in range(4):
        model.observe("decode", FULL, 2, 0.1)
    assert model.step_s(FULL, 2) == pytest.approx(0.1, rel=0.2)
    assert model.predict("prefill", LIGHT, 20) > 0
