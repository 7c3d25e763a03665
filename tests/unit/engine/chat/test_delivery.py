"""From the results of steps to the events of calls."""

from typing import Any

import pytest

from foveate.core.chat import ChatEnded, ChatStarted, ChatToken, SamplingOptions
from foveate.core.errors import BadRequest, RunFailed
from foveate.engine.chat.engine import ChatEngine
from foveate.engine.chat.entry import ChatEntry
from foveate.engine.chat.steps import ChatStep, StepResult
from tests.support.chat_engines import QUESTIONS, RecordedChatRunner, chat_call
from tests.support.torchvision_ops import import_transformers

transformers: Any = import_transformers()

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("inference_on_one_thread")]


class SteppedChat:
    """An engine without a loop: tests run its steps."""

    def __init__(self) -> None:
        self.now = 0.0
        self.engine = ChatEngine(RecordedChatRunner(slots=2, slot_tokens=256), clock=lambda: self.now)
        self.delivery = self.engine._delivery

    def add(self, seed: int, tokens: int = 3) -> ChatEntry:
        call = chat_call(QUESTIONS[1], [seed], options=SamplingOptions(tokens))
        ids = self.engine.model.read(call.turns, call.options)
        entry = self.engine._admission.admit(call, ids, False, self.engine._state())
        self.engine.queue.push(entry)
        return entry

    def step(self) -> tuple[ChatStep, StepResult]:
        """The next step, which the device has run at the time of the clock. Nothing is delivered."""
        step = self.engine.scheduler.next_step(self.engine._state)
        assert step is not None
        results: list[StepResult] = []
        results.append(self.engine._steps.run(step, results.append))
        return step, results[0]


@pytest.fixture
def stepped() -> SteppedChat:
    return SteppedChat()


async def events(entry: ChatEntry) -> list[Any]:
    got = []
    while not entry._events.empty():
        got.append(await entry.next_event())
    return got


async def test_an_answer_starts_goes_on_and_ends(stepped: SteppedChat) -> None:
    entry = stepped.add(1)
    stepped.now = 1.0
    stepped.delivery.encoded(*stepped.step())
    assert not entry.missing and await events(entry) == []
    stepped.now = 2.0
    stepped.delivery.answered(*stepped.step())
    started, token = await events(entry)
    assert isinstance(started, ChatStarted) and isinstance(token, ChatToken)
    assert (started.queue_s, started.first_token_s) == (1.0, 2.0)
    for now in (3.0, 4.0):
        stepped.now = now
        stepped.delivery.answered(*stepped.step())
    *tokens, ended = await events(entry)
    assert len(tokens) == 2 and isinstance(ended, ChatEnded)
    assert (ended.finish, ended.answer_tokens, ended.total_s) == ("length", 3, 4.0)
    assert entry.over


async def test_failures_end_their_calls(stepped: SteppedChat) -> None:
    first, second = stepped.add(1), stepped.add(2)
    step, result = stepped.step()
    keys = list(step.pictures)
    result.features[keys[0]] = ValueError("unknown pixels")  # type: ignore[index]
    stepped.delivery.encoded(step, result)
    with pytest.raises(RunFailed) as failure:
        await first.next_event()
    assert isinstance(failure.value.__cause__, ValueError)
    step, result = stepped.step()
    assert step.entries == (second,)
    refused = BadRequest("the schema cannot be used")
    stepped.delivery.answered(step, StepResult(result.entries, [refused]))
    with pytest.raises(BadRequest) as passed_on:
        await second.next_event()
    assert passed_on.value is refused


async def test_a_call_that_is_over_gets_no_events_but_keeps_its_prefix(stepped: SteppedChat) -> None:
    entry = stepped.add(1)
    stepped.delivery.encoded(*stepped.step())
    step, result = stepped.step()
    entry.end(None, "cancelled")
    stepped.delivery.answered(step, result)
    assert await events(entry) == []
    assert len(stepped.engine.caches.prefixes) == len(stepped.engine.caches.features) == 1
    (step, result) = stepped.step()
    assert step.stage is None and len(step.leaving) == 1
    assert stepped.engine.model.free_slots == 2
