"""Admission of chats: checks a call, counts it as an arrival, and refuses it early if it would be late."""

import math
from collections.abc import Callable, Sequence

from prometheus_client import Counter

from foveate.core.chat import ChatCall, ChatPicture
from foveate.core.errors import BadRequest, DeadlineExceeded
from foveate.core.plan import Plan
from foveate.core.request import Objective
from foveate.engine.admission import MAX_ALLOWED_S
from foveate.engine.chat.entry import ChatEntry
from foveate.engine.chat.runner import ChatModel
from foveate.engine.chat.scheduler import ChatScheduler
from foveate.engine.chat.tenant import ChatTenant
from foveate.estimation.chat_latency import QUESTION_TOKENS
from foveate.estimation.host_load import HostLoadMonitor
from foveate.scheduling.chat_state import ChatRefusal, ChatState
from foveate.scheduling.policy import virtual_deadline

UNKNOWN_PICTURE = ChatPicture(b"", None, 0)
"""Stands in for the picture of a call of which nothing is known yet: no cache holds it."""


TOKEN_CHARACTERS = 4
"""Characters of a token, about."""


class ChatAdmission:
    """Admits calls to the queue of one model."""

    def __init__(
        self,
        model: ChatModel,
        scheduler: ChatScheduler,
        tenant: ChatTenant,
        host_load: HostLoadMonitor,
        demand_counter: Counter,
        clock: Callable[[], float],
    ) -> None:
        """demand_counter: counts full-quality demand in device seconds."""
        self.model, self.scheduler, self.tenant, self.host_load = model, scheduler, tenant, host_load
        self.clock, self._demand_counter = clock, demand_counter

    def reserve(
        self,
        objective: Objective,
        plan: Plan | None,
        ready_in_s: float,
        call: ChatCall | None,
        state: ChatState[ChatEntry],
    ) -> None:
        """Accept a call whose pictures will be decoded in `ready_in_s` seconds, or refuse it.

        No waiting call is refused for it yet: its pictures may turn out to be none. call: what is known of
        it; None for nothing, as if it asked a short question about a picture. Raises BadPlan, BadRequest,
        DeadlineExceeded, TooLate.
        """
        if call is None:
            call = ChatCall("", self.model.card.name, (), (UNKNOWN_PICTURE,), objective=objective, plan=plan)
        # The text is not encoded yet. With so few tokens it fits a slot if the pictures do.
        ids = (self.model.picture_token,) * len(call.pictures) + (0,)
        candidate = self._entry(call, ids)
        texts = sum(len(part) for turn in call.turns for part in turn.parts if isinstance(part, str))
        candidate.ids = (*ids, *(0,) * (QUESTION_TOKENS + texts // TOKEN_CHARACTERS))
        candidate.ready_at = candidate.admitted_at + ready_in_s
        self._victim(candidate, state, count=True)

    def admit(
        self, call: ChatCall, ids: Sequence[int], reserved: bool, state: ChatState[ChatEntry]
    ) -> ChatEntry:
        """An entry to put into the queue, for which another call may have been refused.

        ids: the tokens of the chat; reserved: `reserve` has counted the call. Raises BadPlan, BadRequest,
        DeadlineExceeded, Overloaded, TooLate.
        """
        named = sum(token == self.model.picture_token for token in ids)
        if named != len(call.pictures):
            raise BadRequest(f"the chat names {named} pictures, and {len(call.pictures)} were given")
        entry = self._entry(call, ids)
        self.scheduler.queue.check_capacity(call.size_bytes, lambda: self.tenant.costs.backlog_s(0, state))
        victim = self._victim(entry, state, count=not reserved)
        if victim is not None:
            self.scheduler.queue.refuse(victim.entry, victim.error(state.now))
        return entry

    def count(self, now: float, allowed_s: float, full_s: float | None = None) -> None:
        """Count an arrival, and its device seconds at full as full-quality demand.

        full_s: None for a call of which nothing is known.
        """
        costs = self.tenant.costs
        self.tenant.arrivals.record(now, min(allowed_s, MAX_ALLOWED_S))
        self._demand_counter.inc(costs.usual_s(len(costs.rungs) - 1) if full_s is None else full_s)

    def _entry(self, call: ChatCall, ids: Sequence[int]) -> ChatEntry:
        """A checked call. Raises BadPlan, BadRequest, DeadlineExceeded."""
        now, deadline = self.clock(), call.objective.deadline
        allowed = self._allowed(call, ids)
        if deadline is not None and deadline <= now:
            raise DeadlineExceeded("the deadline passed before the request was admitted")
        order = virtual_deadline(call.objective, now, self.tenant.default_deadline_s)
        return ChatEntry(call, ids, order, allowed, now, self.scheduler.load_of, self.model.card.full)

    def _allowed(self, call: ChatCall, ids: Sequence[int]) -> Sequence[int]:
        """The rungs that a call accepts and fits under. Raises BadPlan, and BadRequest if it fits none."""
        if call.plan is not None:
            self.model.check(call.plan)
            self.model.check_length(ids, call.plan)
            return ()
        rungs = self.tenant.costs.rungs
        accepted = [
            index
            for index, rung in enumerate(rungs[:-1])
            if (rung.quality or 0.0) >= call.objective.min_quality
            and (rung.worst_quality or 0.0) >= call.min_quality_worst
        ]
        allowed: list[int] = []
        too_long: BadRequest | None = None
        for index in (*accepted, len(rungs) - 1):
            try:
                self.model.check_length(ids, rungs[index].plan)
                allowed.append(index)
            except BadRequest as error:
                too_long = too_long or error
        if not allowed and too_long is not None:
            raise too_long
        return allowed

    def _victim(
        self, entry: ChatEntry, state: ChatState[ChatEntry], *, count: bool
    ) -> ChatRefusal[ChatEntry] | None:
        """The waiting call that has to be refused for this one, or None. Raises TooLate for this one.

        count: the call is an arrival, unless it would be late on an idle device too.
        """
        now, refusal = state.now, self.scheduler.policy.admit(entry, state)
        if count and not (refusal is not None and refusal.alone):
            infinite = math.isinf(entry.deadline)
            allowed_s = self.tenant.default_deadline_s if infinite else entry.deadline - now
            self.count(now, allowed_s, self.tenant.costs.full_s(entry))
        if refusal is None or refusal.entry is not entry:
            return refusal
        if not state.active and not state.waiting and not self.host_load.pending:
            # Nothing runs that could correct the estimates: see `QueueAdmission`.
            self.scheduler.latency.decay()
            self.host_load.decay()
        raise refusal.error(now)
