"""Plans of calls by rung, and the errors of refusals."""

import pytest

from foveate.scheduling.chat_forecast import AnswerTimes
from foveate.scheduling.chat_state import ChatRefusal, ChatState, plan_at
from tests.unit.scheduling.test_chat_policy import FULL, HALF, LIGHT, WaitingCall

PLANS = (LIGHT, HALF, FULL)


@pytest.mark.parametrize(
    ("allowed", "plans"),
    [
        ((0, 1, 2), PLANS),
        ((1, 2), (HALF, HALF, FULL)),
        ((0, 2), (LIGHT, LIGHT, FULL)),
        ((0,), (LIGHT, LIGHT, LIGHT)),
        ((2,), (FULL, FULL, FULL)),
    ],
)
def test_a_call_gets_the_best_rung_that_it_accepts(allowed: tuple[int, ...], plans: object) -> None:
    assert tuple(plan_at(WaitingCall(allowed=allowed), PLANS, rung) for rung in range(3)) == plans
    assert plan_at(WaitingCall(allowed=allowed, pinned=HALF), PLANS, 2) == HALF


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (AnswerTimes(0.1, 3.0), "the deadline is in 2.000 s, and the answer would take 3.000 s"),
        (AnswerTimes(1.5, 1.6), "the first token is due in 1.000 s, and would take 1.500 s"),
        (AnswerTimes(0.1, 0.2), "make other answers late"),
        (None, "make other answers late"),
    ],
)
def test_a_refusal_says_what_would_be_late(times: AnswerTimes | None, message: str) -> None:
    error = ChatRefusal(WaitingCall(2.0, first_token_by=1.0), 0.7, times).error(0.0)
    assert message in error.detail and (error.status, error.retry_after_s) == (429, 0.7)


def test_the_next_step_begins_when_the_device_is_free() -> None:
    waiting: list[WaitingCall] = []
    assert ChatState(1.0, 2.0, (), waiting, 1).start == 2.0
    assert ChatState(3.0, 2.0, (), waiting, 1).start == 3.0
