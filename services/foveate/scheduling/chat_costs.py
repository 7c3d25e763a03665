"""What chats cost a device, and when their tokens come, by a latency model and the lengths of answers."""

import math
from collections.abc import Sequence
from typing import Protocol

from foveate.core.model import Rung
from foveate.core.plan import Plan
from foveate.estimation.answer_lengths import AnswerLengths
from foveate.scheduling.chat_forecast import AnswerTimes, JoiningCall, RunningTokens, forecast
from foveate.scheduling.chat_state import ActiveChat, CallLoad, ChatState, ChatT, WaitingChat, plan_at
from foveate.scheduling.forecast import MAX_SHARED_UTILIZATION

MAX_FORECAST = 64
"""Waiting calls that a forecast follows, the first of the queue. Those behind them count as backlog."""
USUAL_TOKENS = 64
"""Tokens that a call allows where it is not known."""


class ChatPredictor(Protocol):
    """The part of a latency model that a policy uses: see `ChatLatencyModel`."""

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


class ChatCosts:
    """Costs and times of chats.

    How long an answer will be is not known. For what answers take from each other, their expected length
    counts, and two deviations of its mean over so many of them; for its own deadline a high quantile; and the
    safety factor of the latency model for both (see `AnswerLengths`). So a call that was admitted is late
    only if its answer is one of the few very long ones, or if steps took longer than the factor covers; it
    then ends at its deadline, and gives its slot back.
    """

    def __init__(
        self, rungs: Sequence[Rung], latency: ChatPredictor, lengths: AnswerLengths, slots: int
    ) -> None:
        """rungs: cheapest first, the last is full."""
        self.rungs, self.plans = rungs, tuple(rung.plan for rung in rungs)
        self.latency, self.lengths, self.slots = latency, lengths, slots

    def times(
        self,
        rung: int,
        state: ChatState[ChatT],
        waiting: Sequence[ChatT],
        next_call: ChatT | None = None,
        *,
        optimistic: bool = False,
    ) -> list[AnswerTimes]:
        """Predicted times of the active calls, then of the waiting ones, which are served at this rung.

        next_call: one more, behind them and on its cheapest plan. optimistic: answers have their expected
        lengths, and steps take as long as predicted.
        """
        starts: dict[tuple[int, CallLoad], float] = {}  # most calls of a queue are alike
        running: list[RunningTokens] = []
        joining: list[JoiningCall] = []
        begun: list[int] = []
        staged: list[int] = []
        factor = self._factor(state, optimistic=optimistic)
        among = 0 if optimistic else len(state.active) + len(waiting)
        for row, chat in enumerate(state.active):
            tokens = self.remaining(chat, among)
            if chat.generated:
                running.append(_expected(tokens) if optimistic else tokens)
                begun.append(row)
            else:
                joining.append(JoiningCall(factor * self._start_s(chat.plan, chat.load), tokens))
                staged.append(row)
        served = [(entry, rung) for entry in waiting]
        for entry, its_rung in served if next_call is None else [*served, (next_call, 0)]:
            plan = plan_at(entry, self.plans, its_rung)
            load, tokens = entry.load(plan), self.whole(entry, among)
            start_s = starts.get((id(plan), load))
            if start_s is None:
                start_s = starts[id(plan), load] = factor * self._start_s(plan, load)
            joining.append(JoiningCall(start_s, _expected(tokens) if optimistic else tokens, entry.ready_at))
        start = state.start + float(state.other_demand.min_s.sum())
        steps = [factor * self.latency.step_s(self.plans[rung], n) for n in range(self.slots + 1)]
        times = forecast(start, lambda n: steps[min(n, self.slots)], self.slots, running, joining)
        order = {row: place for place, row in enumerate((*begun, *staged))}
        return [*(times[order[row]] for row in range(len(order))), *times[len(order) :]]

    def behind(self, entry: ChatT, place: int, state: ChatState[ChatT]) -> AnswerTimes:
        """Times of a call behind more waiting ones than a forecast follows, all on the cheapest plans."""
        factor = self._factor(state, optimistic=False)
        wait_s = factor * (self.active_backlog_s(state) + place * self.mean_s(0, state))
        plan = plan_at(entry, self.plans, 0)
        start_s = factor * self._start_s(plan, entry.load(plan))
        step_s = factor * self.latency.step_s(plan, self.slots)
        first = max(state.now + wait_s, entry.ready_at) + start_s
        return AnswerTimes(first, first + (self.whole(entry).high - 1) * step_s)

    def alone(self, entry: ChatT, now: float) -> AnswerTimes:
        """Times of a call on an idle device, on the cheapest plan that it accepts."""
        return self.times(0, ChatState(now, now, (), (entry,), self.slots), (entry,))[0]

    def _factor(self, state: ChatState[ChatT], *, optimistic: bool) -> float:
        """Factor on predicted seconds: safety, and the device's time that other models take."""
        demand = state.other_demand
        share = min(MAX_SHARED_UTILIZATION, demand.share(1.0)) if demand.active else 0.0
        return (1.0 if optimistic else self.latency.safety_factor) / (1 - share)

    def _start_s(self, plan: Plan, load: CallLoad) -> float:
        return self.latency.start_s(plan, load.pictures, load.tokens)

    def whole(self, entry: WaitingChat, among: int = 0) -> RunningTokens:
        """The tokens of the answer to a waiting call. among: see `AnswerLengths.mean`."""
        mean, high = self.lengths.mean(entry.max_tokens, among=among), self.lengths.high(entry.max_tokens)
        return RunningTokens(min(mean, high), high)

    def remaining(self, chat: ActiveChat, among: int = 0) -> RunningTokens:
        """The tokens that an active call has yet to get. among: see `AnswerLengths.mean`."""
        high = max(1, self.lengths.high(chat.max_tokens, chat.generated) - chat.generated)
        mean = max(1.0, self.lengths.mean(chat.max_tokens, chat.generated, among) - chat.generated)
        return RunningTokens(min(mean, high), high)

    def cap(self, entry: WaitingChat, plan: Plan, state: ChatState[ChatT]) -> int:
        """Tokens of the answer at most: those that are in time, if the call may be shortened."""
        if not entry.may_shorten or math.isinf(entry.deadline):
            return entry.max_tokens
        factor = self._factor(state, optimistic=False)
        left_s = entry.deadline - state.start - factor * self._start_s(plan, entry.load(plan))
        step_s = factor * self.latency.step_s(plan, min(self.slots, len(state.active) + 1))
        return max(1, min(entry.max_tokens, 1 + math.floor(left_s / step_s)))

    def beyond_forecast_s(self, rung: int, state: ChatState[ChatT]) -> float:
        """Device seconds of the waiting calls that a forecast does not follow, at a rung."""
        count = len(state.waiting) - MAX_FORECAST
        return count * self.mean_s(rung, state) if count > 0 else 0.0

    def call_s(self, plan: Plan, load: CallLoad, tokens: float) -> float:
        """Device seconds of a call in full batches."""
        step_s = self.latency.step_s(plan, self.slots) / self.slots
        return self._start_s(plan, load) + tokens * step_s

    def waiting_s(self, rung: int, entry: WaitingChat) -> float:
        """Device seconds of a waiting call at a rung."""
        plan = plan_at(entry, self.plans, rung)
        return self.call_s(plan, entry.load(plan), self.lengths.mean(entry.max_tokens))

    def active_s(self, chat: ActiveChat) -> float:
        """Device seconds of what is left of an active call."""
        return self.call_s(chat.plan, chat.load, self.remaining(chat).mean)

    def full_s(self, entry: WaitingChat) -> float:
        """Device seconds of a call at full, whatever plan it pins: its full-quality demand."""
        plan = self.plans[-1]
        return self.call_s(plan, entry.load(plan), self.lengths.mean(entry.max_tokens))

    def usual_s(self, rung: int) -> float:
        """Device seconds of a short question about a picture at a rung: of a call that is not known."""
        load = CallLoad(1, self.rungs[rung].tokens)
        return self.call_s(self.plans[rung], load, self.lengths.mean(USUAL_TOKENS))

    def start_wait_s(self, state: ChatState[ChatT]) -> float:
        """Seconds until a further call could start, those ahead of it on their cheapest plans.

        It waits until these have started, and one of the running answers has ended.
        """
        if state.free_slots > len(state.waiting):
            return 0.0
        left = min((self.remaining(chat).mean for chat in state.active), default=0.0)
        ahead_s = len(state.waiting) * self.mean_s(0, state) if state.waiting else 0.0
        return ahead_s + left * self.latency.step_s(self.plans[0], len(state.active))

    def backlog_s(self, rung: int, state: ChatState[ChatT]) -> float:
        """Device seconds until what runs and what waits is done, with all waiting calls at this rung."""
        waiting = len(state.waiting) * self.mean_s(rung, state) if state.waiting else 0.0
        return self.active_backlog_s(state) + waiting

    def active_backlog_s(self, state: ChatState[ChatT]) -> float:
        """Device seconds until what runs is done."""
        return max(0.0, state.free_at - state.now) + sum(map(self.active_s, state.active))

    def mean_s(self, rung: int, state: ChatState[ChatT]) -> float:
        """Device seconds of a waiting call at a rung, the mean over the first ones."""
        head = state.waiting[:MAX_FORECAST]
        return sum(self.waiting_s(rung, entry) for entry in head) / len(head)


def _expected(tokens: RunningTokens) -> RunningTokens:
    """The same, if the answer has its expected length."""
    return RunningTokens(tokens.mean, min(tokens.high, math.ceil(tokens.mean)))
