"""One admitted call, with all of its state."""

import asyncio
import math
import secrets
from collections.abc import Callable, Sequence
from typing import Any, Literal

from foveate.core.chat import CachedParts, ChatCall, ChatEvent, last_question
from foveate.core.errors import FoveateError
from foveate.core.outcome import Reason
from foveate.core.plan import Plan
from foveate.engine.chat.runner import AnswerState, HasBytes
from foveate.scheduling.chat_state import ActiveChat, CallLoad

ChatEnd = Literal["stop", "length", "failed", "refused", "expired", "cancelled"]
"""How a call ends."""
END_OF: dict[str, ChatEnd] = {"refused": "refused", "expired": "expired", "cancelled": "cancelled"}
"""How a call ends with an error, by the outcome of the error; failed for all others."""
LoadOf = Callable[["ChatEntry", Plan], CallLoad]


class ChatEntry:
    """A call from its admission to its last event. It waits, is staged, runs, and is over.

    Staged: its plan is chosen and a slot is kept for it, and it has no token yet.
    """

    def __init__(
        self,
        call: ChatCall,
        ids: Sequence[int],
        virtual_deadline: float,
        allowed: Sequence[int],
        admitted_at: float,
        load_of: LoadOf,
        full: Plan,
    ) -> None:
        """ids: the tokens of the chat; allowed: see `WaitingChat`; admitted_at: clock seconds; load_of: what
        it takes to start a call under a plan; full: the plan until another one is chosen."""
        objective, by = call.objective, call.first_token_by
        self.call, self.ids, self.virtual_deadline, self.allowed = call, ids, virtual_deadline, allowed
        self.admitted_at, self.ready_at = admitted_at, -math.inf
        # As in `QueueEntry`: a policy reads these at every decision.
        self.deadline = math.inf if objective.deadline is None else objective.deadline
        self.first_token_by = math.inf if by is None else by
        self.pinned, self.tenant, self.size_bytes = call.plan, objective.tenant, call.size_bytes
        self.options, self.may_shorten = call.options, call.may_shorten
        self.cache_scope = secrets.token_hex(16) if call.bypass_cache else objective.tenant
        """Chats of one scope share what is cached."""
        self.on_end: Callable[[ChatEntry, ChatEnd], None] = lambda _, __: None
        """Called once, when the call is over."""
        self.expiry: asyncio.TimerHandle | None = None
        self._load_of = load_of
        self._loads: dict[Plan, CallLoad] = {}
        self._events: asyncio.Queue[ChatEvent | FoveateError] = asyncio.Queue()
        self.over = False
        """The call has ended, or its client has left: it gets no more events."""
        self.plan = full
        self.reason: Reason = "full"
        self.prefix: Any = None
        """The kept beginning of its prompt."""
        self.prefix_digests: list[bytes] = []
        """Of its prompt up to each picture; empty where no prefix is kept."""
        self.feature_keys: list[bytes] = []
        """Of the pictures behind the prefix; none once the prompt is complete."""
        self.features: dict[bytes, HasBytes] = {}
        self.sequence: AnswerState | None = None
        self.left_tokens = 0
        """Tokens of the prompt that are not prefilled."""
        self.cached = CachedParts()
        self.generated = 0
        """Tokens of the answer so far."""
        self.last_token_at = admitted_at
        """When its last token came; clock seconds."""
        self._started_at: float | None = None

    @property
    def min_rung(self) -> int:
        """Index of the cheapest rung that the call accepts."""
        return self.allowed[0] if self.allowed else 0

    @property
    def max_tokens(self) -> int:
        """Tokens of the answer at most."""
        return self.options.max_tokens

    def start(self, now: float) -> None:
        """A step for it begins, which is the first one unless it has started."""
        if self._started_at is None:
            self._started_at = now

    @property
    def queue_s(self) -> float:
        """Seconds from admission to its first step; 0 before that."""
        return 0.0 if self._started_at is None else self._started_at - self.admitted_at

    @property
    def question(self) -> str:
        """The text of the last user's turn, for methods that depend on it."""
        return last_question(self.call.turns)

    def load(self, plan: Plan) -> CallLoad:
        """What it takes to start it under a plan, as it was when this was asked first."""
        if plan not in self._loads:
            self._loads[plan] = self._load_of(self, plan)
        return self._loads[plan]

    @property
    def missing(self) -> dict[bytes, Any]:
        """The pixels of the pictures that have no features, by the keys of these."""
        pictures = self.call.pictures[len(self.call.pictures) - len(self.feature_keys) :]
        pairs = zip(self.feature_keys, pictures, strict=True)
        return {key: picture.pixels for key, picture in pairs if key not in self.features}

    @property
    def active(self) -> ActiveChat:
        """The call as the policy sees it while it is staged or runs."""
        max_tokens = self.sequence.max_tokens if self.sequence is not None else self.max_tokens
        load = CallLoad(len(self.missing), self.left_tokens)
        return ActiveChat(self.plan, self.generated, max_tokens, self.deadline, load)

    def emit(self, event: ChatEvent) -> None:
        """Give the client the next event, unless the call is over."""
        if not self.over:
            self._events.put_nowait(event)

    def end(self, last: ChatEvent | FoveateError | None, end: ChatEnd) -> None:
        """End the call with its last event or its error, unless it is over; None: the client has left."""
        if self.over:
            return
        if last is not None:
            self._events.put_nowait(last)
        self.over = True
        if self.expiry is not None:
            self.expiry.cancel()
        self.on_end(self, end)

    def fail(self, error: FoveateError) -> None:
        """End the call with this error, unless it is over already."""
        self.end(error, END_OF.get(error.outcome, "failed"))

    async def next_event(self) -> ChatEvent:
        """The next event. Raises the error that ended the call."""
        event = await self._events.get()
        if isinstance(event, FoveateError):
            raise event
        return event
