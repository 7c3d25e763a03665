"""One admitted call: its events, and its one end."""

import asyncio
import math

import pytest

from foveate.core.chat import ChatEnded, ChatToken
from foveate.core.errors import DeadlineExceeded, DeviceHung, RunFailed, TooLate
from foveate.core.plan import Plan
from foveate.core.request import Objective
from foveate.engine.chat.entry import ChatEnd, ChatEntry
from foveate.scheduling.chat_state import CallLoad
from tests.support.chat_engines import chat_call

pytestmark = pytest.mark.anyio

FULL = Plan("vit-x-chat", 64)
TOKEN, LAST = ChatToken("a", None), ChatEnded("stop", 1, 1.0, 1.0)


class CountedLoads:
    """Says what a call takes, and counts how often it is asked."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, entry: ChatEntry, plan: Plan) -> CallLoad:
        self.asked += 1
        return CallLoad(len(entry.call.pictures), len(entry.ids))


def make_entry(loads: CountedLoads | None = None, **options: object) -> ChatEntry:
    call = chat_call("what?", [1, 2], **options)  # type: ignore[arg-type]
    return ChatEntry(call, [2, 4, 4, 7, 5, 3], 1.0, (1, 2), 0.0, loads or CountedLoads(), FULL)


async def test_events_arrive_in_order_and_end_once() -> None:
    entry, ends = make_entry(), list[ChatEnd]()
    entry.on_end = lambda _, end: ends.append(end)
    entry.emit(TOKEN)
    entry.end(LAST, "stop")
    entry.fail(RunFailed("late"))
    entry.emit(TOKEN)
    entry.end(None, "cancelled")
    assert [await entry.next_event(), await entry.next_event()] == [TOKEN, LAST]
    assert ends == ["stop"] and entry.over


@pytest.mark.parametrize(
    ("error", "end"),
    [
        (RunFailed("x"), "failed"),
        (DeadlineExceeded("x"), "expired"),
        (TooLate("x"), "refused"),
        (DeviceHung("x"), "refused"),
    ],
)
async def test_an_error_is_raised_in_the_place_of_an_event(error: Exception, end: ChatEnd) -> None:
    entry, ends = make_entry(), list[ChatEnd]()
    entry.on_end = lambda _, how: ends.append(how)
    entry.fail(error)  # type: ignore[arg-type]
    with pytest.raises(type(error)):
        await entry.next_event()
    assert ends == [end]


async def test_its_timer_ends_with_it() -> None:
    entry = make_entry()
    entry.expiry = asyncio.get_running_loop().call_later(99, lambda: None)
    entry.end(None, "cancelled")
    assert entry.expiry.cancelled()


def test_the_policy_sees_the_objective_and_what_is_left() -> None:
    loads = CountedLoads()
    entry = make_entry(loads, objective=Objective(5.0, tenant="t"), first_token_by=2.0, may_shorten=True)
    assert (entry.deadline, entry.first_token_by, entry.tenant, entry.may_shorten) == (5.0, 2.0, "t", True)
    assert (entry.min_rung, entry.max_tokens) == (1, 8)
    assert math.isinf(make_entry().deadline) and math.isinf(make_entry().first_token_by)
    assert entry.load(FULL) == entry.load(FULL) == CallLoad(2, 6) and loads.asked == 1
    entry.feature_keys, entry.left_tokens = [b"a", b"b"], 6
    entry.features = {b"b": object()}  # type: ignore[dict-item]
    assert list(entry.missing) == [b"a"]
    assert entry.missing[b"a"] is entry.call.pictures[0].pixels
    assert entry.active.load == CallLoad(1, 6) and entry.active.deadline == 5.0
    # The first picture stands in a kept prefix.
    entry.feature_keys, entry.features = [b"b"], {}
    assert entry.missing[b"b"] is entry.call.pictures[1].pixels
