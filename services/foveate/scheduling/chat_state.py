"""What a policy of chats gets and gives: calls that wait, answers that run, decisions and refusals."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from foveate.core.errors import TooLate
from foveate.core.outcome import Reason
from foveate.core.plan import Plan
from foveate.estimation.arrivals import ArrivalStats
from foveate.scheduling.chat_forecast import AnswerTimes
from foveate.scheduling.device_demand import NO_DEMAND, DeviceDemand
from foveate.scheduling.policy import QueuedRequest


@dataclass(frozen=True, slots=True)
class CallLoad:
    """What has to be computed before the first token of a call, beside what is cached."""

    pictures: int
    """Pictures to encode."""
    tokens: int
    """Tokens to prefill."""


class WaitingChat(QueuedRequest, Protocol):
    """The part of a waiting call that the policy sees."""

    @property
    def first_token_by(self) -> float:
        """Deadline of the first token; clock seconds, infinite for none."""
        ...

    @property
    def allowed(self) -> Sequence[int]:
        """The rungs that the call accepts and that it fits under, in increasing order."""
        ...

    @property
    def max_tokens(self) -> int:
        """Tokens of the answer at most."""
        ...

    @property
    def may_shorten(self) -> bool:
        """Whether the answer may be cut off so that it is in time."""
        ...

    @property
    def ready_at(self) -> float:
        """When its pictures are decoded; clock seconds, minus infinity for a call that is ready."""
        ...

    def load(self, plan: Plan) -> CallLoad:
        """What it takes to start it under a plan."""
        ...


@dataclass(frozen=True, slots=True)
class ActiveChat:
    """A call with a slot, or with one that is kept for it."""

    plan: Plan
    generated: int
    """Tokens of the answer so far; 0 for a call that is not prefilled."""
    max_tokens: int
    deadline: float
    """Clock seconds; infinite for none."""
    load: CallLoad = CallLoad(0, 0)
    """What has to be computed before its first token."""


ChatT = TypeVar("ChatT", bound=WaitingChat)


@dataclass(frozen=True, slots=True)
class ChatState(Generic[ChatT]):
    """What runs and what waits. Times are clock seconds."""

    now: float
    free_at: float
    """When the step that runs is predicted to end."""
    active: Sequence[ActiveChat]
    waiting: Sequence[ChatT]
    """In queue order."""
    free_slots: int
    """Slots that neither run nor are kept for a call."""
    arrivals: ArrivalStats = ArrivalStats()  # noqa: RUF009 -- frozen
    other_demand: DeviceDemand = NO_DEMAND

    @property
    def start(self) -> float:
        """When the next step can begin."""
        return max(self.now, self.free_at)


@dataclass(frozen=True, slots=True)
class ChatDecision(Generic[ChatT]):
    """The calls that start next, all under one plan."""

    entries: tuple[ChatT, ...]
    plan: Plan
    reason: Reason = "full"
    """Of those that pin no plan."""
    max_tokens: tuple[int, ...] = ()
    """For each of the entries, the tokens of its answer at most."""
    refused: tuple[ChatT, ...] = ()
    """Waiting calls that cannot be in time on any plan that they accept."""
    wait_s: float = 0.0
    """Seconds after which their clients may retry: as of `ChatRefusal`."""


@dataclass(frozen=True, slots=True)
class ChatRefusal(Generic[ChatT]):
    """One call has to be refused so that the others are in time."""

    entry: ChatT
    """The candidate, or a waiting call in its place."""
    wait_s: float
    """Seconds after which a client may retry: until what runs and waits is done on the cheapest plans."""
    times: AnswerTimes | None
    """When the candidate would have its tokens."""
    alone: bool = False
    """The candidate would be late on an idle device too, so that it is no demand."""

    def error(self, now: float) -> TooLate:
        """The failure of the refused call, with Retry-After."""
        what = "its tokens would come too late, or make other answers late"
        if self.times is not None:
            if self.times.last > self.entry.deadline:
                due_s, would_s = self.entry.deadline - now, self.times.last - now
                what = f"the deadline is in {due_s:.3f} s, and the answer would take {would_s:.3f} s"
            elif self.times.first > self.entry.first_token_by:
                due_s, would_s = self.entry.first_token_by - now, self.times.first - now
                what = f"the first token is due in {due_s:.3f} s, and would take {would_s:.3f} s"
        return TooLate(f"{what} on the cheapest plan; allow more time or retry later", self.wait_s)


def plan_at(entry: WaitingChat, plans: Sequence[Plan], rung: int) -> Plan:
    """The plan that a call gets when the queue is served at this rung."""
    if entry.pinned is not None:
        return entry.pinned
    return plans[max((i for i in entry.allowed if i <= rung), default=entry.allowed[0])]
