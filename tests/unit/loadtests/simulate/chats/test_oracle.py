"""The bound on the utility of chats: by hand, and above every policy."""

import numpy as np
import pytest

from loadtests.simulate.chats.baselines import CHAT_POLICIES
from loadtests.simulate.chats.oracle import chat_upper_bound
from loadtests.simulate.chats.run import ChatWorld, simulate_chats
from loadtests.simulate.machine import NO_DISTURBANCE
from tests.support.chat_profiles import RUNGS
from tests.support.simulated_chats import chat_workload, one_chat

WORLD = ChatWorld(RUNGS, disturbance=NO_DISTURBANCE)


def test_a_lone_chat_with_enough_time_is_served_at_full_at_best() -> None:
    workload = chat_workload([0.0], [one_chat()], 1.0)
    assert chat_upper_bound(WORLD, workload) == pytest.approx(1.0)


def test_no_time_is_no_utility() -> None:
    workload = chat_workload([0.0], [one_chat()], 1e-9)
    assert chat_upper_bound(WORLD, workload) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("rate", [10, 40, 160])
def test_no_policy_exceeds_the_bound(rate: float) -> None:
    at = np.cumsum(np.random.default_rng(0).exponential(1 / rate, 300))
    chats = [one_chat(n // 2, 1 + n % 20, seen=bool(n % 2)) for n in range(300)]
    workload = chat_workload(at.tolist(), chats, 0.4)
    bound = chat_upper_bound(WORLD, workload)
    utilities = {
        name: simulate_chats(WORLD, CHAT_POLICIES[name], workload, 0).utility for name in CHAT_POLICIES
    }
    assert 0 < max(utilities.values()) <= bound * (1 + 1e-9) <= 300 * (1 + 1e-6)
