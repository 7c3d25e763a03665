"""The rule of each baseline policy, by hand."""

from collections.abc import Sequence

import pytest

from foveate.core.model import Rung
from foveate.core.plan import Plan
from foveate.estimation.arrivals import ArrivalStats
from foveate.estimation.latency import LatencyModel
from foveate.scheduling.policy import BatchDecision
from loadtests.simulate.baselines import FixedTarget, RejectOnly, SlackFit, policies
from loadtests.simulate.workload import SimulatedRequest

FULL = Plan("tiny", 32)
LIGHT = Plan("tiny", 32, reducer="evit:0.5")
RUNGS = (
    Rung(LIGHT, 0.5, 5, 0.8, {1: 1.5, 2: 2.0, 4: 3.0}),  # 1 + n / 2
    Rung(FULL, 1.0, 10, 1.0, {1: 2.0, 2: 3.0, 4: 5.0}),  # 1 + n
)
NO_ARRIVALS = ArrivalStats()


def latency() -> LatencyModel:
    return LatencyModel(RUNGS)


def waiting(*deadlines: float) -> list[SimulatedRequest]:
    return [SimulatedRequest(i, 0.0, deadline, deadline, 0, "") for i, deadline in enumerate(deadlines)]


def numbers(decision: BatchDecision[SimulatedRequest] | None) -> Sequence[int]:
    assert decision is not None
    return [request.number for request in decision.entries]


def test_static_policies_serve_all_requests_under_one_plan() -> None:
    for name, plan in (("static-full", FULL), ("static-light", LIGHT)):
        policy = policies(1.0)[name](RUNGS, latency(), 4)
        assert policy.admit(waiting(0.1)[0], [], 0.0, 99.0) is None
        decision = policy.choose(waiting(0.1, 0.2, 0.3, 0.4, 0.5), 0.0, 0.0, NO_ARRIVALS)
        assert decision is not None and decision.plan == plan and decision.full
        assert numbers(decision) == [0, 1, 2, 3]


def test_reject_only_admits_requests_that_are_in_time_at_full() -> None:
    policy = RejectOnly(RUNGS, latency(), 4)
    safety_factor = policy.latency.safety_factor
    # Two requests are ahead at (1 + 4) / 4 seconds each; then a batch of three takes 4 s.
    needed = 2.5 + safety_factor * 4
    ahead = waiting(1.0, 2.0)
    assert policy.admit(waiting(needed + 0.01)[0], ahead, 0.0, 0.0) is None
    refusal = policy.admit(waiting(needed - 0.01)[0], ahead, 0.0, 0.0)
    assert refusal is not None and refusal.wait_s == pytest.approx(2.5)
    assert policy.admit(waiting(needed + 0.01)[0], ahead, 0.0, 0.1) is not None


def test_reject_only_refuses_late_requests_and_sizes_batches_by_slack() -> None:
    policy = RejectOnly(RUNGS, latency(), 4)
    decision = policy.choose(waiting(1.9, 4.5, 9.0, 9.0, 9.0), 0.0, 0.0, NO_ARRIVALS)
    assert decision is not None and decision.plan == FULL
    assert numbers(decision) == [1, 2, 3] and decision.full  # 1 + 3 s fit into 4.5 s, 1 + 4 s do not
    assert [request.number for request in decision.refused] == [0]
    only_late = policy.choose(waiting(1.0), 0.0, 0.0, NO_ARRIVALS)
    assert only_late is not None and not only_late.entries and len(only_late.refused) == 1


def test_a_fixed_target_takes_the_largest_batch_within_it() -> None:
    queue = waiting(*[9.0] * 9)
    for target, size in ((4.5, 3), (0.5, 1), (99.0, 4)):
        decision = FixedTarget(RUNGS, latency(), 4, target).choose(queue, 0.0, 0.0, NO_ARRIVALS)
        assert len(numbers(decision)) == size
        assert decision is not None and decision.full and decision.plan == FULL
    two = FixedTarget(RUNGS, latency(), 4, 4.5).choose(queue[:2], 0.0, 0.0, NO_ARRIVALS)
    assert two is not None and len(two.entries) == 2 and not two.full


def test_slackfit_prefers_a_larger_batch_to_a_better_plan() -> None:
    policy = SlackFit(RUNGS, latency(), 4)
    assert policy.pair(99.0) == (4, FULL)
    assert policy.pair(5.1) == (4, FULL)
    assert policy.pair(4.6) == (3, FULL)  # its bucket is the last that ends before the slack does
    assert policy.pair(3.1) == (4, LIGHT)  # not two requests at full, which take as long
    assert policy.pair(1.6) == (1, LIGHT)
    assert policy.pair(-9.0) == (1, LIGHT)


def test_slackfit_goes_by_the_most_urgent_when_the_device_is_free() -> None:
    policy = SlackFit(RUNGS, latency(), 4)
    decision = policy.choose(waiting(5.1, 9.0, 9.0, 9.0, 9.0), 0.0, 2.0, NO_ARRIVALS)
    assert decision is not None and decision.plan == LIGHT and numbers(decision) == [0, 1, 2, 3]
    assert policy.admit(waiting(0.0)[0], [], 1.0, 1.0) is None
