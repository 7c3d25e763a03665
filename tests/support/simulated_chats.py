"""Simulated chats by hand, and an engine that serves them without noise."""

from collections.abc import Sequence

import numpy as np

from foveate.core.model import Rung
from foveate.scheduling.chat_policy import ChatFifo, ChatPolicyFactory
from loadtests.simulate.chats.baselines import ChatBaseline
from loadtests.simulate.chats.engine import ChatLimits
from loadtests.simulate.chats.record import ChatSimulationRecord
from loadtests.simulate.chats.run import ChatWorld, simulate_chats
from loadtests.simulate.chats.workload import ChatWorkload, SimulatedChat
from loadtests.simulate.machine import NO_DISTURBANCE
from loadtests.simulate.workload import RequestClass
from tests.support.chat_profiles import RUNGS


def one_chat(picture: int = 0, answer: int = 4, text: int = 16, seen: bool = False) -> SimulatedChat:
    """A short question, whose answer may be a little longer than it is."""
    return SimulatedChat(picture, seen, text, answer, 64)


def chat_workload(
    at: Sequence[float], chats: Sequence[SimulatedChat], slo_s: float = np.inf, first_token_s: float = np.inf
) -> ChatWorkload:
    """Chats at these times, all with these deadlines."""
    index = np.zeros(len(at), np.intp)
    return ChatWorkload(np.array(at, np.float64), (RequestClass(slo_s),), index, tuple(chats), first_token_s)


def served_chats(
    workload: ChatWorkload,
    policy: ChatPolicyFactory = ChatFifo,
    rungs: tuple[Rung, ...] = RUNGS,
    limits: ChatLimits | None = None,
) -> ChatSimulationRecord:
    """The record of a simulation without noise."""
    world = ChatWorld(rungs, limits or ChatLimits(), NO_DISTURBANCE)
    return simulate_chats(world, ChatBaseline(policy), workload, 0)
