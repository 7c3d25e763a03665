"""The policy of chats and its baselines."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from foveate.core.model import Rung
from foveate.scheduling.chat_policy import ChatFifo, ChatPolicyFactory, ChatSloPolicy

Part = Literal["all", "full", "cheapest"]


@dataclass(frozen=True, slots=True)
class ChatBaseline:
    """A policy, and the rungs that it knows."""

    policy: ChatPolicyFactory
    part: Part = "all"

    def rungs_of(self, rungs: Sequence[Rung]) -> tuple[Rung, ...]:
        """Those of the rungs that it knows. rungs: cheapest first."""
        return {"all": tuple(rungs), "full": (rungs[-1],), "cheapest": (rungs[0],)}[self.part]


CHAT_POLICIES: Mapping[str, ChatBaseline] = {
    "slo": ChatBaseline(ChatSloPolicy),
    "static-full": ChatBaseline(ChatFifo, "full"),
    "static-light": ChatBaseline(ChatFifo, "cheapest"),
    "reject-only": ChatBaseline(ChatSloPolicy, "full"),
}
"""The server's policy; first in, first out, at full and at the cheapest rung; and full or refused."""
