"""The chat engine on a virtual clock, step by step."""

import numpy as np
import pytest

from foveate.scheduling.chat_policy import ChatSloPolicy
from loadtests.simulate.chats.engine import ChatLimits
from loadtests.simulate.record import End
from tests.support.chat_profiles import RUNGS
from tests.support.simulated_chats import chat_workload, one_chat, served_chats

ENCODE_S, PREFILL_S, STEP_S = 0.02, 0.03, 0.004
"""Of one picture, of its prompt and a short question, and of a step, under full."""
FIRST_S = ENCODE_S + PREFILL_S


def test_a_lone_chat_takes_the_seconds_of_its_stages() -> None:
    record = served_chats(chat_workload([1.0], [one_chat(answer=5)]))
    assert record.first_token_s[0] == pytest.approx(FIRST_S)
    assert record.latency_s[0] == pytest.approx(FIRST_S + 4 * STEP_S)
    assert (record.end[0], record.quality[0], record.cached_tokens[0]) == (End.MET, 1.0, 0)


def test_an_answer_of_one_token_has_no_step_of_decoding() -> None:
    record = served_chats(chat_workload([0.0], [one_chat(answer=1)]))
    assert record.latency_s[0] == record.first_token_s[0] == pytest.approx(FIRST_S)


def test_a_chat_joins_the_answers_that_run() -> None:
    chats = [one_chat(0, 50), one_chat(1, 3)]
    record = served_chats(chat_workload([0.0, FIRST_S + 0.001], chats))
    assert record.latency_s[1] < 0.1 < record.latency_s[0]
    assert record.ran > record.batches, "some steps had both"


def test_a_second_question_about_a_picture_finds_it_in_the_cache() -> None:
    chats = [one_chat(0), one_chat(0, seen=True), one_chat(1)]
    record = served_chats(chat_workload([0.0, 1.0, 2.0], chats))
    full = RUNGS[-1].tokens
    assert record.cached_tokens.tolist() == [0, full, 0]
    assert record.first_token_s[1] < 0.2 * record.first_token_s[0]
    off = ChatLimits(feature_bytes=0, prefix_bytes=0)
    record = served_chats(chat_workload([0.0, 1.0, 2.0], chats), limits=off)
    assert record.first_token_s == pytest.approx([FIRST_S] * 3)


def test_an_answer_that_is_late_expires_and_frees_its_slot() -> None:
    chats = [one_chat(0, 64), one_chat(1)]
    record = served_chats(chat_workload([0.0, 0.25], chats, slo_s=0.2), limits=ChatLimits(slots=1))
    assert record.end.tolist() == [End.MISSED, End.MET]
    assert record.latency_s[1] < 0.2


def test_the_deadline_of_the_first_token_counts() -> None:
    for first_token_s, end in ((FIRST_S + 0.001, End.MET), (FIRST_S - 0.001, End.MISSED)):
        record = served_chats(chat_workload([0.0], [one_chat()], 10.0, first_token_s))
        assert record.end[0] == end


def test_the_policy_goes_below_full_and_then_refuses() -> None:
    at = np.arange(200) / 80
    chats = [one_chat(number) for number in range(len(at))]
    record = served_chats(chat_workload(at.tolist(), chats, 0.4), ChatSloPolicy)
    assert set(np.unique(record.quality[record.end == End.MET])) <= {0.9, 0.97, 1.0}
    assert (record.quality == 0.9).any() and (record.end == End.REFUSED).any()
    assert record.share(End.MISSED) < 0.05
    assert not (record.end == End.NONE).any(), "every chat has one outcome"


def test_a_full_queue_refuses() -> None:
    chats = [one_chat(number, 64) for number in range(4)]
    record = served_chats(chat_workload([0.0] * 4, chats), limits=ChatLimits(slots=1, max_items=1))
    assert record.share(End.REFUSED) >= 0.5


def test_the_same_seed_gives_the_same_record() -> None:
    at = np.arange(100) / 40
    workload = chat_workload(at.tolist(), [one_chat(number % 7) for number in range(100)], 0.5)
    first, second = (served_chats(workload, ChatSloPolicy) for _ in range(2))
    assert np.array_equal(first.latency_s, second.latency_s, equal_nan=True)
    assert first.decisions == second.decisions > 100
