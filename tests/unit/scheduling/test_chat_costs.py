"""What chats cost, and how lengths and other models enter."""

from dataclasses import replace

import pytest

from foveate.estimation.answer_lengths import AnswerLengths
from foveate.scheduling.chat_costs import ChatCosts
from foveate.scheduling.chat_state import ActiveChat, CallLoad
from foveate.scheduling.device_demand import DeviceDemand
from tests.unit.scheduling.test_chat_policy import (
    FULL,
    LIGHT,
    RUNGS,
    SLOTS,
    VirtualLatency,
    WaitingCall,
    known,
    state,
)


def costs(lengths: AnswerLengths) -> ChatCosts:
    return ChatCosts(RUNGS, VirtualLatency(), lengths, SLOTS)


def test_a_call_costs_its_start_and_its_share_of_full_steps() -> None:
    shared_s = (0.004 + SLOTS * 0.001) / SLOTS
    assert costs(known(10)).call_s(FULL, CallLoad(1, 20), 10) == pytest.approx(0.03 + 10 * shared_s)
    assert costs(known(10)).waiting_s(0, WaitingCall()) == pytest.approx(0.018 + 10 * shared_s)
    active = ActiveChat(FULL, 4, 10, 1.0)
    both = costs(known(10)).backlog_s(0, state([WaitingCall()], [active]))
    assert both == pytest.approx(0.018 + 16 * shared_s)


def test_times_of_active_calls_come_first_in_their_order() -> None:
    staged = ActiveChat(LIGHT, 0, 10, 1.0, CallLoad(0, 8))
    running = ActiveChat(FULL, 4, 10, 1.0)
    of_staged, of_running, of_waiting = costs(known(10)).times(
        0, state([], [staged, running]), [WaitingCall()]
    )
    assert of_running.first < 0 < of_staged.first < of_waiting.first
    assert of_running.last < of_staged.last < of_waiting.last


def test_an_optimistic_forecast_takes_answers_as_long_as_expected() -> None:
    lengths = known(4, 4, 4, 4, 4, 4, 4, 60)
    call = WaitingCall(max_tokens=100)
    (careful,) = costs(lengths).times(0, state([]), [call])
    (optimistic,) = costs(lengths).times(0, state([]), [call], optimistic=True)
    assert careful.last == pytest.approx(0.018 + 59 * 0.005)
    assert optimistic.last == pytest.approx(0.018 + 10 * 0.005)
    assert costs(lengths).alone(call, 5.0).last == pytest.approx(5.0 + careful.last)


def test_other_models_take_their_share_of_the_time() -> None:
    busy = replace(state([]), other_demand=DeviceDemand(full_share=0.5, min_share=0.1, allowed_s=1.0))
    (alone,) = costs(known(10)).times(0, state([]), [WaitingCall()])
    (beside,) = costs(known(10)).times(0, busy, [WaitingCall()])
    assert beside.last == pytest.approx(2 * alone.last)


def test_remaining_tokens_are_at_least_one() -> None:
    for generated in (1, 9, 10, 15):
        left = costs(known(10)).remaining(ActiveChat(FULL, generated, 20, 1.0))
        assert 1 <= left.mean <= left.high <= 20 - generated + 1


def test_a_cap_keeps_the_answer_within_its_deadline() -> None:
    call = WaitingCall(0.1181, max_tokens=99, may_shorten=True)
    assert costs(known(10)).cap(call, LIGHT, state([])) == 21
    assert costs(known(10)).cap(WaitingCall(0.118, max_tokens=99), LIGHT, state([])) == 99
    assert costs(known(10)).cap(replace(call, deadline=0.001), LIGHT, state([])) == 1


def test_a_call_behind_a_long_queue_waits_for_all_of_it() -> None:
    queue = [WaitingCall() for _ in range(200)]
    call = WaitingCall()
    *_, followed = costs(known(10)).times(0, state([]), [*queue, call])
    estimated = costs(known(10)).behind(call, 200, state(queue))
    assert estimated.first == pytest.approx(followed.first, rel=0.1)
    assert estimated.last == pytest.approx(followed.last, rel=0.1)
    assert costs(known(10)).behind(replace(call, ready_at=99.0), 200, state(queue)).first > 99.0


def test_full_quality_demand_ignores_the_plan_that_a_call_pins() -> None:
    own = costs(known(10))
    assert (
        own.full_s(WaitingCall(pinned=LIGHT))
        == own.waiting_s(2, WaitingCall())
        > own.waiting_s(0, WaitingCall())
    )
    # Of a call that is not known: its visual tokens, without text.
    assert own.waiting_s(2, WaitingCall()) - own.usual_s(2) == pytest.approx(0.004)


def test_a_further_call_waits_for_those_ahead_and_for_a_slot() -> None:
    own, call = costs(known(10)), WaitingCall()
    running = [ActiveChat(FULL, done, 10, 1.0) for done in (2, 7, 4, 5)]
    assert own.start_wait_s(state([call] * 3)) == 0
    assert own.start_wait_s(state([], running[:3], free=1)) == 0
    step_s = 0.004 + SLOTS * 0.001
    assert own.start_wait_s(state([], running, free=0)) == pytest.approx(3 * step_s)
    two = own.start_wait_s(state([call] * 2, running, free=0))
    assert two == pytest.approx(3 * step_s + 2 * own.waiting_s(0, call))
