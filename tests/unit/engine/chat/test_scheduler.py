"""Continuous batching: what is staged, what the next step is, and what it holds."""

from collections.abc import Sequence
from typing import Any

import pytest

from foveate.core.chat import SamplingOptions
from foveate.core.metrics import Metrics
from foveate.core.model import Rung
from foveate.engine.chat import scheduler as scheduler_module
from foveate.engine.chat.caches import ChatCaches
from foveate.engine.chat.entry import ChatEntry
from foveate.engine.chat.scheduler import ChatScheduler, picture_ends
from foveate.engine.chat.steps import ChatStep
from foveate.engine.queue import WaitingQueue
from foveate.estimation.answer_lengths import AnswerLengths
from foveate.estimation.chat_latency import ChatLatencyModel
from foveate.scheduling.chat_costs import ChatCosts
from foveate.scheduling.chat_policy import ChatFifo
from foveate.scheduling.chat_state import ChatState
from tests.support.chat_engines import QUESTIONS, RecordedChatRunner, chat_call
from tests.support.torchvision_ops import import_transformers

transformers: Any = import_transformers()

SLOTS = 3


class Scheduled:
    """A scheduler with a clock that tests set, and no device."""

    def __init__(self) -> None:
        self.now = 0.0
        self.runner = RecordedChatRunner(slots=SLOTS, slot_tokens=256)
        rungs: Sequence[Rung] = self.runner.card.ladder
        latency = ChatLatencyModel(rungs)
        self.queue: WaitingQueue[ChatEntry] = WaitingQueue(99, 10**9)
        self.scheduler = ChatScheduler(
            self.runner,
            ChatFifo(ChatCosts(rungs, latency, AnswerLengths(), SLOTS)),
            self.queue,
            latency,
            ChatCaches("w", 10**6, 10**6, Metrics()),
            lambda: self.now,
        )

    def add(self, *seeds: int, deadline: float = 99.0) -> ChatEntry:
        call = chat_call(QUESTIONS[1], seeds, options=SamplingOptions(4))
        entry = ChatEntry(
            call,
            self.runner.tokenizer.chat(call.turns),
            float(len(self.queue)),
            (0,),
            0.0,
            self.scheduler.load_of,
            self.runner.full,
        )
        entry.deadline = deadline
        self.queue.push(entry)
        return entry

    def state(self) -> ChatState[ChatEntry]:
        unused = self.scheduler.unused_slots
        return ChatState(self.now, self.now, self.scheduler.active, tuple(self.queue), unused)

    def next(self) -> ChatStep:
        step = self.scheduler.next_step(self.state)
        assert step is not None
        return step

    def encoded(self, step: ChatStep) -> None:
        """The pictures of a step have features now."""
        assert step.stage == "encode"
        for entry in step.entries:
            entry.features |= {key: KeptPicture() for key in step.pictures}

    def started(self, step: ChatStep) -> None:
        """The calls of a prefill have a token now."""
        assert step.stage == "prefill"
        for entry in step.entries:
            entry.left_tokens, entry.generated = 0, 1
            self.scheduler.promote(entry)
            self.scheduler.keep(entry, None)


class KeptPicture:
    nbytes = 100


@pytest.fixture
def scheduled() -> Scheduled:
    return Scheduled()


def test_a_call_is_encoded_prefilled_and_decoded(scheduled: Scheduled) -> None:
    entry = scheduled.add(1, 2)
    step = scheduled.next()
    assert (step.stage, step.size, step.entries, step.leaving) == ("encode", 2, (entry,), ())
    scheduled.encoded(step)
    step = scheduled.next()
    assert (step.stage, step.counts) == ("prefill", (len(entry.ids) + 2 * 15,))
    scheduled.started(step)
    step = scheduled.next()
    assert (step.stage, step.size, step.holding) == ("decode", 1, (entry,))
    assert step.repeats > 1
    entry.end(None, "cancelled")
    assert scheduled.scheduler.next_step(scheduled.state) is None
    assert not scheduled.scheduler.has_work


@pytest.mark.parametrize(
    ("stall_s", "expected"),
    [
        (0.0, ["decode", "encode", "decode", "prefill", "decode"]),
        (0.05, ["decode", "encode", "prefill", "decode", "decode"]),
    ],
)
def test_running_answers_wait_for_a_bounded_time(
    scheduled: Scheduled, monkeypatch: pytest.MonkeyPatch, stall_s: float, expected: list[str]
) -> None:
    monkeypatch.setattr(scheduler_module, "MAX_STALL_S", stall_s)
    scheduled.add(1)
    scheduled.encoded(scheduled.next())
    scheduled.started(scheduled.next())
    scheduled.add(2)
    stages = []
    for _ in range(5):
        step = scheduled.next()
        stages.append(step.stage)
        assert step.repeats == 1 or not scheduled.scheduler.staged
        if step.stage == "encode":
            scheduled.encoded(step)
        elif step.stage == "prefill":
            scheduled.started(step)
    assert stages == expected


def test_slots_are_kept_for_staged_calls(scheduled: Scheduled) -> None:
    entries = [scheduled.add(seed) for seed in range(5)]
    scheduled.next()
    assert scheduled.scheduler.staged == entries[:SLOTS] and len(scheduled.queue) == 2
    assert scheduled.scheduler.unused_slots == 0
    assert [chat.load.pictures for chat in scheduled.scheduler.active] == [1, 1, 1]


def test_equal_pictures_are_one_and_kept_features_none(scheduled: Scheduled) -> None:
    first, second = scheduled.add(1), scheduled.add(1)
    step = scheduled.next()
    assert step.size == 1 and step.entries == (first, second)
    scheduled.encoded(step)
    scheduled.started(scheduled.next())
    third = scheduled.add(1)
    assert third.load(scheduled.runner.full).pictures == 0
    scheduled.scheduler._stall_s = 0.0
    assert scheduled.next().stage == "prefill" and third.cached.features == 1


def test_what_ended_or_expired_is_let_go(scheduled: Scheduled) -> None:
    gone, late, stays = scheduled.add(1), scheduled.add(2, deadline=5.0), scheduled.add(3)
    scheduled.encoded(scheduled.next())
    step = scheduled.next()
    while step.stage != "prefill" or len(step.entries) < 3:
        scheduled.encoded(step)
        step = scheduled.next()
    sequences = [SlotHolder(slot) for slot in range(3)]
    for entry, sequence in zip((gone, late, stays), sequences, strict=True):
        entry.sequence = sequence
    scheduled.started(step)
    gone.end(None, "cancelled")
    scheduled.now = 5.0
    step = scheduled.next()
    assert step.leaving == tuple(sequences[:2]) and step.entries == (stays,)
    assert late.over
    stays.end(None, "cancelled")
    step = scheduled.next()
    assert step.stage is None and step.leaving == (sequences[2],)


class SlotHolder:
    max_tokens, unfilled, divisible, finish, error = 4, 0, True, None, None

    def __init__(self, slot: int) -> None:
        self.slot = slot


def test_prefills_are_bounded_while_answers_run(
    scheduled: Scheduled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler_module, "PREFILL_TOKENS", 20)
    monkeypatch.setattr(scheduler_module, "MAX_STALL_S", 0.0)
    scheduled.add()
    scheduled.started(scheduled.next())
    long = scheduled.add(1)
    scheduled.scheduler._stall_s = 0.0
    scheduled.encoded(scheduled.next())
    for left in (20, long.left_tokens - 20):
        assert scheduled.next().stage == "decode"
        step = scheduled.next()
        assert (step.entries, step.counts) == ((long,), (left,))
        long.left_tokens -= left


def test_a_call_is_prefilled_before_the_pictures_of_others_are_encoded(
    scheduled: Scheduled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler_module, "MAX_STALL_S", 0.0)
    scheduled.add()
    scheduled.started(scheduled.next())
    first, second = scheduled.add(1), scheduled.add(2)
    scheduled.scheduler._stall_s = 0.0
    scheduled.encoded(scheduled.next())
    assert scheduled.next().stage == "decode"
    step = scheduled.next()
    assert (step.stage, step.entries) == ("prefill", (first,))
    scheduled.started(step)
    assert scheduled.next().stage == "decode"
    step = scheduled.next()
    assert (step.stage, step.entries) == ("encode", (second,))


def test_few_pictures_are_encoded_at_once_while_answers_run(
    scheduled: Scheduled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler_module, "MAX_STALL_S", 0.0)
    scheduled.add()
    scheduled.started(scheduled.next())
    scheduled.add(1, 2, 3)
    scheduled.scheduler._stall_s = 0.0
    assert scheduled.next().size == 1
    alone = Scheduled()
    alone.add(1, 2, 3)
    assert alone.next().size == 3


def test_the_ends_of_pictures_are_counted_in_tokens() -> None:
    assert picture_ends([2, 4, 7, 4, 4, 8], 4, 16) == [17, 34, 50]
    assert picture_ends([2, 7], 4, 16) == []
