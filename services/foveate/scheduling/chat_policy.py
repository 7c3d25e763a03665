"""The policy of chats: the best plan at which every answer is in time, and early refusal otherwise.

It decides as `SloPolicy` does: the whole queue is served at one rung, the best one that keeps all deadlines
and keeps up with the arrivals, and calls are refused only once the cheapest rung does not help. `SloPolicy`
itself cannot: it knows batches that begin and end together and cost the same whatever is asked. An answer
joins others that run already, costs as many steps as it has tokens, slows the others down while it runs, and
may have a deadline for its first token too. The rest is shared: rungs, queue order, which call is refused in
the place of another one, whether a rung keeps up, and the demand of other models.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from typing import Protocol

from foveate.core.outcome import Reason
from foveate.core.plan import Plan
from foveate.scheduling.chat_costs import MAX_FORECAST, ChatCosts
from foveate.scheduling.chat_forecast import AnswerTimes
from foveate.scheduling.chat_state import (
    ChatDecision,
    ChatRefusal,
    ChatState,
    ChatT,
    WaitingChat,
    plan_at,
)
from foveate.scheduling.policy import last_of_largest_tenant, last_of_lowest_priority

QUEUE_SHARE = 0.3
"""Share of the time that the next call can wait which the calls before it may take. So calls are degraded
before one is refused: both follow from the same forecast. A higher share refuses more calls of a burst, a
lower one degrades more of those that are in time anyway (`python -m loadtests.simulate --chat`)."""
MAX_TRIED = 8
"""Calls that one decision refuses at most, or tries to start alone. The next one follows within steps."""


class ChatPolicy(Protocol):
    """Decides which calls are admitted, and which start next and how."""

    def admit(self, candidate: ChatT, state: ChatState[ChatT]) -> ChatRefusal[ChatT] | None:
        """Refuse the candidate, or a waiting call in its place; None admits it and refuses none."""
        ...

    def choose(self, state: ChatState[ChatT]) -> ChatDecision[ChatT] | None:
        """The calls to start next; None if none waits."""
        ...


ChatPolicyFactory = Callable[[ChatCosts], ChatPolicy]


class ChatFifo:
    """The baseline of comparisons: first in, first out, at the plan that a call pins or at full."""

    def __init__(self, costs: ChatCosts) -> None:
        self.plans = costs.plans

    def admit(self, candidate: ChatT, state: ChatState[ChatT]) -> ChatRefusal[ChatT] | None:
        """Admits the candidate."""
        return None

    def choose(self, state: ChatState[ChatT]) -> ChatDecision[ChatT] | None:
        """The first call, and those behind it that run under the same plan."""
        return first_calls(state, self.plans, len(self.plans) - 1) if state.waiting else None


class ChatSloPolicy:
    """Serves the queue at the best rung that keeps all deadlines. It has no state of its own."""

    def __init__(self, costs: ChatCosts) -> None:
        self.costs, self.plans = costs, costs.plans

    def admit(self, candidate: ChatT, state: ChatState[ChatT]) -> ChatRefusal[ChatT] | None:
        """Admit the candidate if it is in time and makes no other call late, all on the cheapest plans.

        Else refuse the last call of a tenant that floods the queue or of a lower priority, or the candidate.
        A candidate without deadlines is admitted: it waits until it makes no running answer late.
        """
        first_by = min(candidate.deadline, candidate.first_token_by)
        if math.isinf(first_by):
            return None
        times = self._late(candidate, state.waiting, state)
        if times is None:
            return None
        alone = self.costs.alone(candidate, state.now)
        idle = not state.active and not state.waiting
        if idle and not self.costs.lengths.known and alone.first <= first_by:
            return None  # so that the lengths of answers become known, at the risk of this call alone
        late_alone = not _may_be_in_time(candidate, alone)
        wait_s = self.costs.backlog_s(0, state)
        for choose_victim in () if late_alone else (last_of_largest_tenant, last_of_lowest_priority):
            victim = choose_victim(candidate, state.waiting)
            rest = [entry for entry in state.waiting if entry is not victim]
            if victim is not None and self._late(candidate, rest, state) is None:
                return ChatRefusal(victim, wait_s, None)
        return ChatRefusal(candidate, wait_s, times, late_alone)

    def _late(
        self, candidate: ChatT, waiting: Sequence[ChatT], state: ChatState[ChatT]
    ) -> AnswerTimes | None:
        """None if the candidate is in time and makes no other call late; else its predicted times."""
        place = sum(entry.virtual_deadline <= candidate.virtual_deadline for entry in waiting)
        if place > MAX_FORECAST:
            far = self.costs.behind(candidate, place, replace(state, waiting=waiting))
            return None if _may_be_in_time(candidate, far) else far
        others = waiting[:MAX_FORECAST]
        after = self.costs.times(0, state, [*others[:place], candidate, *others[place:]])
        own = after.pop(len(state.active) + place)
        if not _may_be_in_time(candidate, own):
            return own
        before = self.costs.times(0, state, others)
        return own if _late_rows(state, others, after) - _late_rows(state, others, before) else None

    def choose(self, state: ChatState[ChatT]) -> ChatDecision[ChatT] | None:
        """The first calls of the queue, at the best rung at which no answer becomes late.

        Calls that will hardly be in time on the cheapest plans are refused. None start while that would make
        a running answer late.
        """
        if not state.waiting:
            return None
        kept, refused = self._shed(state)
        left = replace(state, waiting=kept)
        wait_s = self.costs.backlog_s(0, left) if refused else 0.0
        if not kept:
            return ChatDecision((), self.plans[-1], refused=refused, wait_s=wait_s)
        now_late = _late_rows(state, (), self.costs.times(0, state, ()))
        next_call = kept[-1] if left.arrivals.rate else None
        next_by = self._next_by(left)
        reason: Reason = "full"
        for rung in reversed(range(len(self.plans))):
            times = self.costs.times(rung, left, kept[:MAX_FORECAST], next_call)
            next_last = times.pop().last if next_call is not None else -math.inf
            joined = zip(kept, times[len(state.active) :], strict=False)
            delayed = bool(_late_rows(state, (), times) - now_late)
            if rung and (delayed or not all(_in_time(entry, each) for entry, each in joined)):
                reason = "deadline"
            elif rung and next_last + self.costs.beyond_forecast_s(rung, left) > next_by:
                reason = "load"
            else:
                break
        decision = first_calls(left, self.plans, rung, reason, refused)
        if delayed:
            decision = self._without_delay(decision, left, now_late)
        caps = (self.costs.cap(entry, decision.plan, left) for entry in decision.entries)
        return replace(decision, max_tokens=tuple(caps), wait_s=wait_s)

    def _next_by(self, state: ChatState[ChatT]) -> float:
        """When a call that comes now, like the last one that waits, has to be answered: see QUEUE_SHARE."""
        alone_by = self.costs.alone(state.waiting[-1], state.now).last
        return alone_by + QUEUE_SHARE * (state.now + state.arrivals.allowed_s - alone_by)

    def _without_delay(
        self, decision: ChatDecision[ChatT], state: ChatState[ChatT], now_late: set[int]
    ) -> ChatDecision[ChatT]:
        """The first call that makes no running answer late, alone on its cheapest plan; or none.

        Running answers go first. A call without a deadline does not hold up those behind it.
        """
        for entry in state.waiting[:MAX_TRIED]:
            alone = self.costs.times(0, state, (entry,))
            if not _late_rows(state, (), alone) - now_late:
                only = replace(state, waiting=(entry,))
                return first_calls(only, self.plans, 0, decision.reason, decision.refused)
        return replace(decision, entries=(), max_tokens=())

    def _shed(self, state: ChatState[ChatT]) -> tuple[Sequence[ChatT], tuple[ChatT, ...]]:
        """The waiting calls that may be in time on the cheapest plans, and those that are refused.

        They were admitted by a careful forecast. They are refused by an optimistic one: a call that is likely
        late is not served for nothing, and one that may be in time is. A call that may be shortened, and any
        while the lengths of answers are not known, needs one token in time.
        """
        kept: list[ChatT] = list(state.waiting)
        refused: list[ChatT] = []
        one_token = not self.costs.lengths.known
        while len(refused) < MAX_TRIED:
            times = self.costs.times(0, state, kept[:MAX_FORECAST], optimistic=True)[len(state.active) :]
            late = next(
                (
                    entry
                    for entry, each in zip(kept, times, strict=False)
                    if (each.first if one_token or entry.may_shorten else each.last) > entry.deadline
                ),
                None,
            )
            if late is None:
                break
            kept.remove(late)
            refused.append(late)
        return kept, tuple(refused)


def _in_time(entry: WaitingChat, times: AnswerTimes) -> bool:
    """Whether a call gets its first and its last token by their deadlines."""
    return times.first <= entry.first_token_by and times.last <= entry.deadline


def _may_be_in_time(entry: WaitingChat, times: AnswerTimes) -> bool:
    """The same, of a call that is cut off where it may be: its first token is then the last one at worst."""
    return _in_time(entry, replace(times, last=times.first) if entry.may_shorten else times)


def _late_rows(state: ChatState[ChatT], waiting: Sequence[ChatT], times: Sequence[AnswerTimes]) -> set[int]:
    """The places in `times` of the calls that are late: the active ones come first, then the waiting ones."""
    count = len(state.active)
    active = zip(state.active, times, strict=False)
    late = {row for row, (chat, each) in enumerate(active) if each.last > chat.deadline}
    joining = zip(waiting, times[count:], strict=False)
    return late | {
        row for row, (entry, each) in enumerate(joining, count) if not _may_be_in_time(entry, each)
    }


def first_calls(
    state: ChatState[ChatT],
    plans: Sequence[Plan],
    rung: int,
    reason: Reason = "full",
    refused: tuple[ChatT, ...] = (),
) -> ChatDecision[ChatT]:
    """The first call, and those behind it that run under the same plan, as many as there are free slots.

    A call that does not fit the model's context under full has a cheaper plan for that reason alone.
    """
    plan = plan_at(state.waiting[0], plans, rung)
    same = (entry for entry in state.waiting if plan_at(entry, plans, rung) == plan)
    entries = tuple(islice(same, state.free_slots))
    tokens = tuple(entry.max_tokens for entry in entries)
    if plan == plans[-1]:
        reason = "full"
    elif reason == "full":
        reason = "context"
    return ChatDecision(entries, plan, reason, tokens, refused)
