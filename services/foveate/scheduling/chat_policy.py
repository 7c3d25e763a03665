"""The policy of chats: the best plan at which every answer is in time, and early refusal otherwise.

It decides as `SloPolicy` does: the whole queue is served at one rung, the best one that keeps all deadlines
and keeps up with the arrivals, and calls are refused only once the cheapest rung does not help. `SloPolicy`
itself cannot: it knows batches that begin and end together and cost the same whatever is asked. An answer
joins others that run already, costs as many steps as it has tokens, slows the others down while it runs, and
may have a deadline for its first token too. What it works on is shared: rungs, queue order, arrivals, the
demand of other models, refusals.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from foveate.core.model import Rung
from foveate.core.outcome import Reason
from foveate.core.plan import Plan
from foveate.estimation.answer_lengths import AnswerLengths
from foveate.scheduling.chat_forecast import AnswerTimes, JoiningCall, RunningTokens, forecast
from foveate.scheduling.chat_state import (
    ActiveChat,
    CallLoad,
    ChatDecision,
    ChatRefusal,
    ChatState,
    ChatT,
    WaitingChat,
    plan_at,
)
from foveate.scheduling.forecast import HORIZON_S, MAX_SHARED_UTILIZATION
from foveate.scheduling.policy import last_of_largest_tenant
from foveate.scheduling.slo_policy import TARGET_UTILIZATION

MAX_FORECAST = 64
"""Waiting calls that a forecast follows, the first of the queue. Those behind them count as backlog."""


class ChatPredictor(Protocol):
    """The part of a latency model that the policy uses: see `ChatLatencyModel`."""

    @property
    def safety_factor(self) -> float:
        """Factor by which a prediction is multiplied so that a step seldom takes longer."""
        ...

    def start_s(self, plan: Plan, pictures: int, tokens: int) -> float:
        """Seconds of encoding pictures and of the prefill of new tokens."""
        ...

    def step_s(self, plan: Plan, answers: int) -> float:
        """Seconds of one token more for each of so many answers."""
        ...


class ChatPolicy(Protocol):
    """Decides which calls are admitted, and which start next and how."""

    def admit(self, candidate: ChatT, state: ChatState[ChatT]) -> ChatRefusal[ChatT] | None:
        """Refuse the candidate, or a waiting call in its place; None admits it and refuses none."""
        ...

    def choose(self, state: ChatState[ChatT]) -> ChatDecision[ChatT] | None:
        """The calls to start next; None if none waits."""
        ...


ChatPolicyFactory = Callable[[Sequence[Rung], ChatPredictor, AnswerLengths, int], ChatPolicy]
"""Takes the rungs to choose from, the latency model, the lengths of answers, and the number of slots."""


class ChatFifo:
    """The baseline of comparisons: first in, first out, at the plan that a call pins or at full."""

    def __init__(
        self, rungs: Sequence[Rung], latency: ChatPredictor, lengths: AnswerLengths, slots: int
    ) -> None:
        self.plans = tuple(rung.plan for rung in rungs)

    def admit(self, candidate: ChatT, state: ChatState[ChatT]) -> ChatRefusal[ChatT] | None:
        """Admits the candidate."""
        return None

    def choose(self, state: ChatState[ChatT]) -> ChatDecision[ChatT] | None:
        """The first call, and those behind it that run under the same plan."""
        return _decision(state, self.plans, len(self.plans) - 1) if state.waiting else None


class ChatSloPolicy:
    """Serves the queue at the best rung that keeps all deadlines. It has no state of its own.

    How long answers are is not known. For what a call takes from the others, its expected length counts; for
    its own deadline a high quantile (see `AnswerLengths`), with the safety factor of the latency model on
    both. So what was admitted is late only if an answer is one of the few very long ones or if the steps took
    longer than the factor covers; it then ends at its deadline, and gives its slot back.
    """

    def __init__(
        self,
        rungs: Sequence[Rung],
        latency: ChatPredictor,
        lengths: AnswerLengths,
        slots: int,
        target_utilization: float = TARGET_UTILIZATION,
    ) -> None:
        """rungs: cheapest first, the last is full; target_utilization: as in `SloPolicy`."""
        self.plans = tuple(rung.plan for rung in rungs)
        self.latency, self.lengths, self.slots = latency, lengths, slots
        self.target_utilization = target_utilization

    def admit(self, candidate: ChatT, state: ChatState[ChatT]) -> ChatRefusal[ChatT] | None:
        """Admit the candidate if it is in time and makes no other call late, all on the cheapest plans.

        Else refuse the last call of a tenant that floods the queue, or the candidate. A candidate without
        deadlines is admitted: it waits until it disturbs no other call.
        """
        if math.isinf(candidate.deadline) and math.isinf(candidate.first_token_by):
            return None
        times = self._fits(candidate, state.waiting, state)
        if times is None:
            return None
        alone = self._times(0, ChatState(state.now, state.now, (), (candidate,), self.slots))[0]
        hopeless = not self._on_time(candidate, alone, strict=True)
        idle = not state.active and not state.waiting
        if (
            idle
            and not self.lengths.known
            and alone.first <= min(candidate.deadline, candidate.first_token_by)
        ):
            return None  # how long answers are becomes known, at the risk of this one alone
        victim = None if hopeless else last_of_largest_tenant(candidate, state.waiting)
        if victim is not None:
            rest = [entry for entry in state.waiting if entry is not victim]
            if self._fits(candidate, rest, state) is None:
                return ChatRefusal(victim, self.wait_s(state), None)
        return ChatRefusal(candidate, self.wait_s(state), times, hopeless)

    def _fits(
        self, candidate: ChatT, waiting: Sequence[ChatT], state: ChatState[ChatT]
    ) -> AnswerTimes | None:
        """None if the candidate is in time and makes no other call late; else its predicted times."""
        place = sum(entry.virtual_deadline <= candidate.virtual_deadline for entry in waiting)
        queue = [*waiting[:place], candidate, *waiting[place:]][: max(MAX_FORECAST, place + 1)]
        count = len(state.active)
        times = self._times(0, state, queue)
        own = times[count + place]
        if not self._on_time(candidate, own, strict=True):
            return own
        before = self._times(0, state, waiting[: len(queue) - 1])
        after = [*times[: count + place], *times[count + place + 1 :]]
        deadlines = [*(each.deadline for each in state.active), *(each.deadline for each in waiting)]
        others = zip(deadlines, before, after, strict=False)
        delayed = any(old.last <= deadline < new.last for deadline, old, new in others)
        return own if delayed else None

    def choose(self, state: ChatState[ChatT]) -> ChatDecision[ChatT] | None:
        """The first calls of the queue, at the best rung at which no answer becomes late.

        Calls that are late even on the cheapest plans are refused. A call that may be shortened is not, as
        long as one token is in time.
        """
        if not state.waiting:
            return None
        kept, refused = self._shed(state)
        if not kept:
            return ChatDecision((), self.plans[-1], refused=refused)
        left = replace(state, waiting=kept)
        as_is = zip(state.active, self._times(0, state, ()), strict=True)
        unavoidable = {row for row, (chat, times) in enumerate(as_is) if times.last > chat.deadline}
        reason: Reason = "full"
        for rung in reversed(range(len(self.plans))):
            if rung and not self._keeps_up(rung, left):
                reason = "load"
            elif rung and not self._all_on_time(rung, left, unavoidable):
                reason = "deadline"
            else:
                break
        decision = _decision(left, self.plans, rung, reason, refused)
        caps = [self._cap(entry, decision.plan, left) for entry in decision.entries]
        return replace(decision, max_tokens=tuple(caps))

    def _shed(self, state: ChatState[ChatT]) -> tuple[list[ChatT], tuple[ChatT, ...]]:
        """The waiting calls without those that would be late on the cheapest plans, and those."""
        kept, refused = list(state.waiting), []
        while kept:
            queue = kept[:MAX_FORECAST]
            times = self._times(0, state, queue)[len(state.active) :]
            late = next(
                (e for e, t in zip(queue, times, strict=True) if not self._on_time(e, t, strict=False)), None
            )
            if late is None:
                break
            kept.remove(late)
            refused.append(late)
        return kept, tuple(refused)

    def _all_on_time(self, rung: int, state: ChatState[ChatT], unavoidable: set[int]) -> bool:
        """Whether all answers are in time at this rung, running ones that would be late anyway left out."""
        times = self._times(rung, state)
        count = len(state.active)
        return all(
            row in unavoidable or each.last <= chat.deadline
            for row, (chat, each) in enumerate(zip(state.active, times, strict=False))
        ) and all(
            self._on_time(entry, each, strict=True)
            for entry, each in zip(state.waiting, times[count:], strict=False)
        )

    def _on_time(self, entry: WaitingChat, times: AnswerTimes, *, strict: bool) -> bool:
        """Whether a waiting call is in time. strict: all of its tokens; else one, where that is of use."""
        if strict and times.first > entry.first_token_by:
            return False
        if not strict and (entry.may_shorten or not self.lengths.known):
            return times.first <= entry.deadline
        return times.last <= entry.deadline

    def _times(
        self, rung: int, state: ChatState[ChatT], waiting: Sequence[ChatT] | None = None
    ) -> list[AnswerTimes]:
        """Predicted times of the active calls, then of the waiting ones, with all waiting at this rung."""
        waiting = state.waiting[:MAX_FORECAST] if waiting is None else waiting
        demand = state.other_demand
        share = min(MAX_SHARED_UTILIZATION, demand.share(1.0)) if demand.active else 0.0
        factor = self.latency.safety_factor / (1 - share)
        plan = self.plans[rung]
        running, joining = [], []
        for chat in state.active:
            tokens = self._remaining(chat)
            if chat.generated:
                running.append(tokens)
            else:
                start_s = factor * self.latency.start_s(chat.plan, chat.load.pictures, chat.load.tokens)
                joining.append(JoiningCall(start_s, tokens))
        order = [row for row, chat in enumerate(state.active) if chat.generated]
        order += [row for row, chat in enumerate(state.active) if not chat.generated]
        for entry in waiting:
            chosen = plan_at(entry, self.plans, rung)
            load = entry.load(chosen)
            start_s = factor * self.latency.start_s(chosen, load.pictures, load.tokens)
            joining.append(JoiningCall(start_s, self._whole(entry), entry.ready_at))
        start = state.start + float(demand.min_s.sum())
        step_s = {n: factor * self.latency.step_s(plan, n) for n in range(1, self.slots + 1)}
        times = forecast(start, lambda n: step_s[min(n, self.slots)], self.slots, running, joining)
        active: list[AnswerTimes] = [times[order.index(row)] for row in range(len(order))]
        return [*active, *times[len(order) :]]

    def _whole(self, entry: WaitingChat) -> RunningTokens:
        return RunningTokens(self.lengths.mean(entry.max_tokens), self.lengths.high(entry.max_tokens))

    def _remaining(self, chat: ActiveChat) -> RunningTokens:
        mean = max(1.0, self.lengths.mean(chat.max_tokens) - chat.generated)
        high = self.lengths.high(chat.max_tokens, chat.generated) - chat.generated
        return RunningTokens(min(mean, max(1, high)), max(1, high))

    def _cap(self, entry: WaitingChat, plan: Plan, state: ChatState[ChatT]) -> int:
        """Tokens of the answer at most: those that are in time, if the call may be shortened."""
        if not entry.may_shorten or math.isinf(entry.deadline):
            return entry.max_tokens
        load, factor = entry.load(plan), self.latency.safety_factor
        left_s = entry.deadline - state.start - factor * self.latency.start_s(plan, *_parts(load))
        step_s = factor * self.latency.step_s(plan, min(self.slots, len(state.active) + 1))
        return max(1, min(entry.max_tokens, 1 + math.floor(left_s / step_s)))

    def call_s(self, plan: Plan, load: CallLoad, tokens: float) -> float:
        """Device seconds of a call in full batches."""
        step_s = self.latency.step_s(plan, self.slots) / self.slots
        return self.latency.start_s(plan, *_parts(load)) + tokens * step_s

    def wait_s(self, state: ChatState[ChatT]) -> float:
        """Device seconds until what runs and what waits is done, on the cheapest plans."""
        return max(0.0, state.free_at - state.now) + self._backlog_s(0, state)

    def _backlog_s(self, rung: int, state: ChatState[ChatT]) -> float:
        active = sum(self.call_s(c.plan, c.load, self._remaining(c).mean) for c in state.active)
        return active + sum(self._waiting_s(rung, entry) for entry in state.waiting)

    def _waiting_s(self, rung: int, entry: WaitingChat) -> float:
        plan = plan_at(entry, self.plans, rung)
        return self.call_s(plan, entry.load(plan), self.lengths.mean(entry.max_tokens))

    def _keeps_up(self, rung: int, state: ChatState[ChatT]) -> bool:
        """Whether the backlog stays within its share of the time allowed. See `Forecast.keeps_up`."""
        arrivals, demand = state.arrivals, state.other_demand
        mean_s = sum(self._waiting_s(rung, entry) for entry in state.waiting) / len(state.waiting)
        utilization = arrivals.rate * mean_s + demand.share(1.0)
        if demand.active and utilization > MAX_SHARED_UTILIZATION:
            return False
        if math.isinf(arrivals.allowed_s):
            return True
        backlog_s = state.start - state.now + self._backlog_s(rung, state) + arrivals.preparing * mean_s
        growth_s = min(arrivals.allowed_s, HORIZON_S) * (utilization - 1)
        return backlog_s + growth_s <= self.target_utilization * arrivals.allowed_s


def _parts(load: CallLoad) -> tuple[int, int]:
    return load.pictures, load.tokens


def _decision(
    state: ChatState[ChatT],
    plans: Sequence[Plan],
    rung: int,
    reason: Reason = "full",
    refused: tuple[ChatT, ...] = (),
) -> ChatDecision[ChatT]:
    """The first call, and those behind it that run under the same plan, as many as there are free slots."""
    plan = plan_at(state.waiting[0], plans, rung)
    same = [entry for entry in state.waiting if plan_at(entry, plans, rung) == plan]
    entries = tuple(same[: state.free_slots])
    tokens = tuple(entry.max_tokens for entry in entries)
    return ChatDecision(entries, plan, "full" if plan == plans[-1] else reason, tokens, refused)
