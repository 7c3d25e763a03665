"""Seconds of stages."""

import pytest

from foveate.core.errors import SetupError
from foveate.core.model import Rung
from foveate.core.plan import Plan
from foveate.estimation.chat_latency import QUESTION_TOKENS, ChatLatencyModel, ChatStage
from loadtests.simulate.chats.machine import ChatMachine, StageTimes
from loadtests.simulate.machine import NO_DISTURBANCE, Disturbance
from tests.support.chat_profiles import RUNGS

FULL = RUNGS[-1]


def test_stages_take_the_seconds_that_the_latency_model_starts_from() -> None:
    times, latency = StageTimes(RUNGS), ChatLatencyModel(RUNGS)
    for rung in RUNGS:
        sizes: dict[ChatStage, int] = {"encode": 8, "prefill": rung.tokens + QUESTION_TOKENS, "decode": 16}
        for stage, size in sizes.items():
            predicted_s = latency.predict(stage, rung.plan, size)
            assert times.seconds(rung.plan, stage, size) == pytest.approx(predicted_s, rel=0.35)
    assert times.seconds(FULL.plan, "encode", 0) == 0


def test_the_best_step_is_that_with_the_fewest_seconds_for_each() -> None:
    times = StageTimes(RUNGS)
    assert times.best_s(FULL.plan, "encode", 8) == pytest.approx(0.12 / 8)
    assert times.best_s(FULL.plan, "encode", 1) == pytest.approx(0.02)
    assert times.best_s(FULL.plan, "decode", 16) == pytest.approx(0.008 / 16)


def test_a_machine_may_be_slower_than_its_profile() -> None:
    times = StageTimes(RUNGS)
    assert ChatMachine(times, NO_DISTURBANCE, 0).run(FULL.plan, "encode", 1) == pytest.approx(0.02)
    slow = ChatMachine(times, Disturbance(2.0, 0.0, 0.0), 0)
    assert slow.run(FULL.plan, "encode", 1) == pytest.approx(0.04)


def test_a_ladder_without_times_of_chats_is_refused() -> None:
    with pytest.raises(SetupError, match="has no times of chats for tiny@32"):
        StageTimes((Rung(Plan("tiny", 32), 1.0, 4, 1.0, {1: 1.0}),))
