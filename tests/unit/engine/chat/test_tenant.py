"""Chats as the device and other models see them."""

import math
from typing import Any

import pytest

from foveate.core.errors import DeviceHung
from foveate.core.request import Objective
from foveate.engine.chat.engine import ChatEngine
from foveate.engine.chat.entry import ChatEntry
from foveate.scheduling.device_demand import NO_DEMAND
from tests.support.chat_engines import QUESTIONS, RecordedChatRunner, chat_call
from tests.support.torchvision_ops import import_transformers

transformers: Any = import_transformers()

pytestmark = pytest.mark.anyio


class StoppedChat:
    """An engine whose loop does not run, on a clock that tests set."""

    def __init__(self) -> None:
        self.now = 10.0
        self.engine = ChatEngine(RecordedChatRunner(slots=2, slot_tokens=256), clock=lambda: self.now)
        self.tenant = self.engine.tenant

    def add(self, deadline: float = math.inf, priority: int = 0) -> ChatEntry:
        at = None if math.isinf(deadline) else deadline
        call = chat_call(QUESTIONS[0], [1], objective=Objective(at, priority=priority))
        ids = self.engine.model.read(call.turns, call.options)
        entry = self.engine._admission.admit(call, ids, False, self.engine._state())
        self.engine.queue.push(entry)
        return entry

    def run(self, entry: ChatEntry) -> None:
        """The call has one token."""
        self.engine.queue.remove(entry)
        self.engine.scheduler.running.append(entry)
        entry.generated, entry.last_token_at = 1, self.now


@pytest.fixture
def stopped() -> StoppedChat:
    return StoppedChat()


async def test_a_waiting_call_has_its_place_in_the_order(stopped: StoppedChat) -> None:
    assert math.isinf(stopped.tenant.virtual_deadline)
    stopped.add(15.0)
    assert stopped.tenant.virtual_deadline == 15.0
    stopped.add(priority=1)
    assert stopped.tenant.virtual_deadline == 10.0  # the default deadline of 1 s, less a second


async def test_a_running_answer_is_due_when_the_rest_of_it_still_fits(stopped: StoppedChat) -> None:
    entry = stopped.add(15.0)
    stopped.run(entry)
    step_s = stopped.engine.latency.step_s(entry.plan, 1)
    left_s = stopped.engine.latency.safety_factor * 7 * step_s
    assert stopped.tenant.virtual_deadline == pytest.approx(15.0 - left_s)


async def test_an_answer_without_a_deadline_lets_others_go_first_after_its_step(stopped: StoppedChat) -> None:
    entry = stopped.add()
    stopped.run(entry)
    assert stopped.tenant.virtual_deadline == 11.0
    async with stopped.engine._device.turn(stopped.tenant):
        pass
    assert math.isinf(stopped.tenant.virtual_deadline)


async def test_demand_is_what_waits_runs_and_is_expected(stopped: StoppedChat) -> None:
    assert stopped.tenant.demand is NO_DEMAND
    first = stopped.add(15.0)
    alone_s = stopped.tenant.demand.full_s[0]
    assert alone_s > 0 and stopped.tenant.demand.deadline.tolist() == [15.0]
    stopped.run(first)
    stopped.add()
    demand = stopped.tenant.demand
    assert demand.virtual_deadline.tolist() == [11.0, stopped.tenant._due(first)]
    assert demand.full_s[1] < alone_s  # it has been encoded and prefilled
    # Images that are due before the next token of an answer without a deadline do not wait for it.
    old = stopped.add()
    stopped.run(old)
    stopped.now += 50.0
    old.last_token_at = stopped.now
    assert stopped.tenant.demand.virtual_deadline.max() == stopped.now + 1.0
    old.end(None, "cancelled")
    stopped.now -= 50.0
    first.end(None, "cancelled")
    assert len(stopped.tenant.demand.full_s) == 1
    for _ in range(5):
        stopped.now += 0.01
        stopped.engine.count_refused(1.0)
    assert stopped.tenant.demand.full_share > 0 and stopped.tenant.demand.allowed_s < math.inf


async def test_calls_without_a_token_are_refused_when_the_device_hangs(stopped: StoppedChat) -> None:
    running, staged, waiting = (stopped.add() for _ in range(3))
    stopped.run(running)
    stopped.engine.queue.remove(staged)
    stopped.engine.scheduler.staged.append(staged)
    stopped.tenant.refuse_waiting(DeviceHung("it hangs"))
    assert (running.over, staged.over, waiting.over) == (False, True, True)
    assert len(stopped.engine.queue) == 0
