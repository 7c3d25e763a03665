"""The SLO policy on tables: the queue and the arrivals in, the batch and its plan out."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from foveate.core.model import Rung
from foveate.core.plan import Plan
from foveate.estimation.arrivals import ArrivalStats
from foveate.estimation.latency import LatencyModel
from foveate.scheduling.device_demand import NO_DEMAND, DeviceDemand
from foveate.scheduling.policy import BatchDecision, Candidate
from foveate.scheduling.slo_policy import SloPolicy

FULL = Plan("m", 32)
CHEAP, MIDDLE = replace(FULL, reducer="evit:0.3"), replace(FULL, reducer="evit:0.6")
RUNGS = tuple(
    Rung(plan, cost, 5, quality, {1: cost * 0.01, 8: cost * 0.08})
    for plan, cost, quality in ((CHEAP, 1.0, 0.8), (MIDDLE, 2.0, 0.9), (FULL, 4.0, 1.0))
)
"""10, 20 and 40 ms per request, whatever the batch."""
BATCHING = tuple(replace(rung, latency_s={1: 0.01 * rung.gflops, 8: 0.017 * rung.gflops}) for rung in RUNGS)
"""The same for a single request; each further request costs a tenth, so that batching pays."""


def policy(rungs: Sequence[Rung] = RUNGS, max_batch: int = 8) -> SloPolicy:
    return SloPolicy(rungs, LatencyModel(rungs), max_batch)


def request(
    deadline: float = math.inf,
    min_rung: int = 0,
    pinned: Plan | None = None,
    tenant: str = "",
    virtual_deadline: float | None = None,
) -> Candidate:
    return Candidate(
        deadline if virtual_deadline is None else virtual_deadline, deadline, min_rung, pinned, tenant
    )


def chosen(
    waiting: Sequence[Candidate],
    arrivals: ArrivalStats = ArrivalStats(),  # noqa: B008  a frozen value
    rungs: Sequence[Rung] = RUNGS,
    free_at: float = 0.0,
    other_demand: DeviceDemand = NO_DEMAND,
) -> BatchDecision[Candidate]:
    decision = policy(rungs).choose(waiting, 0.0, free_at, arrivals, other_demand)
    assert decision is not None
    return decision


def test_an_empty_queue_gives_no_batch() -> None:
    assert policy().choose((), 0.0, 0.0, ArrivalStats()) is None


def test_a_lone_request_gets_full() -> None:
    decision = chosen([request(1.0)])
    assert (decision.plan, len(decision.entries), decision.reason) == (FULL, 1, "full")


@pytest.mark.parametrize(
    ("deadline_s", "plan"), [(0.045, FULL), (0.041, MIDDLE), (0.022, MIDDLE), (0.02, CHEAP), (0.0101, CHEAP)]
)
def test_a_tight_deadline_gets_the_best_plan_that_fits_with_the_safety_factor(
    deadline_s: float, plan: Plan
) -> None:
    decision = chosen([request(deadline_s)])
    assert (decision.plan, decision.refused) == (plan, ())
    assert decision.reason == ("full" if plan == FULL else "deadline")


def test_the_running_batch_shortens_the_slack() -> None:
    assert chosen([request(0.06)]).plan == FULL
    assert chosen([request(0.06)], free_at=0.03).plan == MIDDLE


@pytest.mark.parametrize(("count", "plan"), [(4, FULL), (5, MIDDLE), (9, MIDDLE), (10, CHEAP), (40, CHEAP)])
def test_all_requests_get_the_best_rung_at_which_all_are_in_time(count: int, plan: Plan) -> None:
    """At 40, 20 and 10 ms per request and a margin of 5%, 0.2 s are enough for 4, 9 and 19 requests."""
    decision = chosen([request(0.2) for _ in range(count)])
    assert decision.plan == plan


def test_a_tight_deadline_degrades_the_requests_before_it() -> None:
    early = [request(10.0, virtual_deadline=0.0) for _ in range(3)]
    assert chosen(early).plan == FULL
    assert chosen([*early, request(0.1)]).plan == MIDDLE


def test_a_minimum_quality_is_kept_and_the_other_requests_are_degraded() -> None:
    waiting = [request(0.1, min_rung=2), request(0.1), request(0.1)]
    first = chosen(waiting)
    assert (first.plan, first.entries) == (FULL, (waiting[0],))
    rest = chosen(waiting[1:], free_at=0.04)
    assert rest.plan == MIDDLE


def test_a_request_that_is_late_on_its_cheapest_plan_is_refused_and_does_not_affect_others() -> None:
    late, fine = request(0.03, min_rung=2), request(0.05)
    decision = chosen([late, fine])
    assert decision.refused == (late,)
    assert decision.entries == (fine,)
    alone = chosen([late])
    assert (alone.refused, alone.entries) == ((late,), ())


def test_a_request_gets_its_pinned_plan() -> None:
    pinned = request(1.0, pinned=CHEAP)
    decision = chosen([pinned, request(1.0)])
    assert (decision.plan, decision.entries, decision.reason) == (CHEAP, (pinned,), "pinned")


def test_a_pinned_plan_that_was_never_measured_costs_as_much_as_full() -> None:
    unknown = replace(FULL, reducer="tome:3")
    assert chosen([request(0.1, pinned=unknown), request(0.1)]).refused == ()
    assert policy().admit(request(0.03, pinned=unknown), [], 0.0, 0.0) is not None
    assert policy().admit(request(0.05, pinned=unknown), [], 0.0, 0.0) is None


def test_batches_are_formed_only_if_they_pay_and_of_one_plan() -> None:
    waiting = [request(9.0), request(9.0, pinned=CHEAP), *(request(9.0) for _ in range(20))]
    together = chosen(waiting, rungs=BATCHING)
    assert len(together.entries) == 8
    assert together.full
    assert waiting[1] not in together.entries
    assert len(chosen(waiting).entries) == 1, "a batch that makes no request cheaper only delays them"


def test_a_batch_makes_none_of_its_requests_late_nor_the_next_one() -> None:
    """Full takes 40 ms for one request and 4 ms for each further one, with a margin of 5%."""
    tight = [request(0.0515), *(request(9.0) for _ in range(7))]
    assert len(chosen(tight, rungs=BATCHING).entries) == 3
    next_pinned = [request(9.0, virtual_deadline=0.0, min_rung=2) for _ in range(7)]
    decision = chosen([*next_pinned, request(0.07, pinned=CHEAP)], rungs=BATCHING)
    assert len(decision.entries) == 4, "10.5 of 70 ms stay for the next request, and 5 is no batch size"


@pytest.mark.parametrize(
    ("rate", "plan"), [(20, FULL), (80, FULL), (82, MIDDLE), (165, MIDDLE), (167, CHEAP), (500, CHEAP)]
)
def test_the_rung_keeps_up_with_the_arrival_rate(rate: float, plan: Plan) -> None:
    """Full serves 25 requests per second. In 0.25 s the queue may grow to 0.6 of the 1 s allowed."""
    decision = chosen([request(1.0)], ArrivalStats(rate, 1.0))
    assert decision.plan == plan
    assert decision.reason == ("full" if plan == FULL else "load")


def test_requests_without_deadlines_are_not_degraded() -> None:
    decision = chosen([request(virtual_deadline=0.0) for _ in range(100)], ArrivalStats(1e4, math.inf))
    assert decision.plan == FULL


def test_admission_refuses_a_request_that_is_late_on_its_cheapest_plan() -> None:
    waiting = [request(0.3) for _ in range(10)]
    assert policy().admit(request(0.31), waiting, 0.0, 0.0) is None
    candidate = request(0.305, min_rung=2)
    assert policy().admit(candidate, waiting, 0.0, 0.0) is None
    refusal = policy().admit(candidate, waiting, 0.0, 0.2)
    assert refusal is not None
    assert refusal.entry is candidate
    assert refusal.wait_s == pytest.approx(0.3)


def test_admission_keeps_the_deadlines_of_queued_requests() -> None:
    waiting = [request(0.12, min_rung=2), request(0.12, min_rung=2)]
    assert policy().admit(request(0.1), waiting, 0.0, 0.0) is None
    refusal = policy().admit(request(0.1, min_rung=2), waiting, 0.0, 0.0)
    assert refusal is not None


def test_a_request_without_a_deadline_is_always_admitted() -> None:
    assert policy().admit(request(virtual_deadline=0.0), [request(0.1)] * 1000, 0.0, 99.0) is None


def test_the_flood_of_one_tenant_is_refused_instead_of_requests_of_others() -> None:
    flood = [request(0.1, tenant="a") for _ in range(9)]
    refusal = policy().admit(request(0.1, tenant="b"), flood, 0.0, 0.0)
    assert refusal is not None
    assert refusal.entry is flood[-1]
    again = policy().admit(request(0.1, tenant="a"), flood, 0.0, 0.0)
    assert again is not None
    assert not any(again.entry is other for other in flood)


def test_no_queued_request_is_refused_for_a_candidate_that_is_late_anyway() -> None:
    flood = [request(9.0, tenant="a") for _ in range(9)]
    late = request(0.005, tenant="b")
    refusal = policy().admit(late, flood, 0.0, 0.0)
    assert refusal is not None
    assert refusal.entry is late


def test_a_request_without_a_deadline_is_not_refused_in_the_place_of_another() -> None:
    flood = [request(virtual_deadline=0.05, tenant="a") for _ in range(9)]
    candidate = request(0.06, tenant="b")
    refusal = policy().admit(candidate, flood, 0.0, 0.0)
    assert refusal is not None
    assert refusal.entry is candidate


def test_a_request_with_a_priority_boost_displaces_one_that_it_would_make_late() -> None:
    plain = request(0.05, min_rung=2)
    urgent = request(0.06, min_rung=1, virtual_deadline=-0.94)
    refusal = policy().admit(urgent, [plain], 0.0, 0.0)
    assert refusal is not None
    assert refusal.entry is plain
    same = policy().admit(request(0.045, min_rung=1), [plain], 0.0, 0.0)
    assert same is not None
    assert same.entry is not plain


def test_a_request_that_is_late_anyway_does_not_affect_others() -> None:
    lost = request(0.02, min_rung=2)
    assert policy().admit(request(0.015), [lost], 0.0, 0.0) is None
    fine = [request(0.5, virtual_deadline=0.0), lost, request(0.5)]
    decision = chosen(fine)
    assert decision.refused == (lost,)
    assert decision.plan == FULL


def test_the_device_serves_other_requests_while_the_candidate_is_decoded() -> None:
    waiting = [request(0.15)]
    assert policy().admit(request(0.1), waiting, 0.0, 0.0, ready_at=0.08) is None
    assert policy().admit(request(0.1), waiting, 0.0, 0.0, ready_at=0.095) is not None


def test_shedding_spares_requests_without_a_deadline_or_with_a_priority_boost() -> None:
    calm, urgent = request(virtual_deadline=0.0, min_rung=2), request(0.1, min_rung=2, virtual_deadline=0.05)
    dear = [request(0.125, min_rung=2) for _ in range(2)]
    cheap = [request(0.13) for _ in range(4)]
    decision = chosen([calm, urgent, *dear, *cheap])
    assert decision.refused == tuple(dear)
    assert decision.entries == (calm,)


def demand_of(
    *waiting: tuple[float, float, float],
    full_share: float = 0.0,
    min_share: float = 0.0,
    allowed_s: float = 9.0,
) -> DeviceDemand:
    """Of another model: deadline, seconds at full, and seconds on the cheapest accepted plan, of each."""
    deadline, full_s, min_s = np.array(waiting).T if waiting else np.empty((3, 0))
    return DeviceDemand(deadline, deadline, full_s, min_s, full_share, min_share, allowed_s)


def test_the_demand_of_other_models_slows_the_device_down() -> None:
    arrivals = ArrivalStats(10.0, 0.5)
    assert chosen([request(0.5)], arrivals).plan == FULL
    other_demand = demand_of(full_share=1.0)  # 1.4 of the device at full, 0.7 at half the cost
    assert chosen([request(0.5)], arrivals, other_demand=other_demand).plan == MIDDLE
    assert chosen([request(0.5)], arrivals, other_demand=demand_of(full_share=2.0)).plan == CHEAP
    assert chosen([request(0.5)], arrivals, other_demand=demand_of(full_share=2.0)).reason == "load"


def test_requests_are_degraded_so_that_those_of_other_models_are_in_time() -> None:
    soon = demand_of((0.1, 0.03, 0.03))
    assert chosen([request(0.5)], other_demand=soon).plan == FULL
    assert chosen([request(0.08)], other_demand=demand_of((0.06, 0.03, 0.03))).plan == MIDDLE, (
        "40 ms would make it late"
    )
    several = demand_of(*((0.3 + step / 1e3, 0.06, 0.0) for step in range(5)))
    relaxed = chosen([request(1.0)], other_demand=several)
    assert relaxed.plan == MIDDLE, "five at full and this one take 0.34 s, the last one has 0.304 s"
    assert relaxed.reason == "load"


def test_a_request_without_a_deadline_is_ordered_among_those_of_other_models() -> None:
    """Its virtual deadline is in a second, after that of the other; there is time for both at full."""
    calm = [request(virtual_deadline=1.0), request(virtual_deadline=1.001)]
    assert chosen(calm, other_demand=demand_of((0.5, 0.03, 0.03))).plan == FULL
    assert chosen(calm, other_demand=demand_of((0.05, 0.03, 0.03))).plan != FULL
    without_deadline = DeviceDemand(np.array([0.9]), np.array([math.inf]), np.array([0.1]), np.array([0.1]))
    assert chosen(calm, other_demand=without_deadline).plan == FULL


def test_a_request_to_another_model_that_is_late_anyway_does_not_count() -> None:
    late = demand_of((0.01, 0.5, 0.2))
    assert chosen([request(1.0) for _ in range(3)], other_demand=late).plan == FULL


def test_a_batch_leaves_time_for_an_urgent_request_to_another_model() -> None:
    waiting = [request(5.0) for _ in range(6)]
    assert len(chosen(waiting, rungs=BATCHING).entries) == 6
    assert len(chosen(waiting, other_demand=demand_of((0.09, 0.03, 0.03)), rungs=BATCHING).entries) == 4


def test_a_candidate_must_not_make_a_request_to_another_model_late() -> None:
    """Cheap takes 10 ms. The request to the other model takes 50 ms and has 70 ms, or 55 ms."""
    candidate = request(0.06)
    wide, narrow = demand_of((0.07, 0.1, 0.05)), demand_of((0.055, 0.1, 0.05))
    assert policy().admit(candidate, (), 0.0, 0.0, other_demand=wide) is None
    assert policy().admit(request(0.05), (), 0.0, 0.0, other_demand=narrow) is not None
    assert policy().admit(request(0.2), (), 0.0, 0.0, other_demand=narrow) is None, (
        "it is served after the other"
    )
    behind = policy().admit(request(0.06), (), 0.0, 0.0, other_demand=narrow)
    assert behind is not None and behind.wait_s == pytest.approx(0.05)


def test_requests_that_are_being_decoded_count_as_waiting() -> None:
    assert chosen([request(0.5)], ArrivalStats(20.0, 0.5, preparing=2)).plan == FULL
    assert chosen([request(0.5)], ArrivalStats(20.0, 0.5, preparing=20)).plan != FULL


def test_a_batch_takes_a_bounded_share_of_the_time_that_other_models_allow() -> None:
    """Six requests at full take 60 ms. Requests to another model that allow 0.2 s may be delayed by 50 ms."""
    waiting = [request(5.0) for _ in range(6)]
    short = chosen(waiting, other_demand=demand_of(full_share=0.01, allowed_s=0.2), rungs=BATCHING)
    assert 1 <= len(short.entries) <= 3 and short.plan == FULL
    none = demand_of(full_share=0.01, allowed_s=0.001)
    assert len(chosen(waiting, other_demand=none, rungs=BATCHING).entries) == 1


class PartlyWarm(LatencyModel):
    """Only these plans are warm."""

    def __init__(self, rungs: Sequence[Rung], *plans: Plan) -> None:
        self.warm_plans = set(plans)
        super().__init__(rungs)

    def is_warm(self, plan: Plan) -> bool:
        return plan in self.warm_plans


def test_a_rung_that_is_not_warm_is_not_chosen() -> None:
    latency = PartlyWarm(RUNGS, CHEAP, FULL)
    cold = SloPolicy(RUNGS, latency, 8)
    in_between = request(0.03)
    decision = cold.choose([in_between], 0.0, 0.0, ArrivalStats())
    assert decision is not None
    assert decision.plan == CHEAP
    latency.warm_plans.add(MIDDLE)
    latency.version += 1
    decision = cold.choose([in_between], 0.0, 0.0, ArrivalStats())
    assert decision is not None
    assert decision.plan == MIDDLE


def test_a_minimum_quality_that_no_warm_rung_below_full_has_is_served_at_full() -> None:
    cold = SloPolicy(BATCHING, PartlyWarm(BATCHING, CHEAP, FULL), 8)
    waiting = [request(1.0, min_rung=1), request(1.0, min_rung=2), request(1.0, min_rung=1)]
    decision = cold.choose(waiting, 0.0, 0.0, ArrivalStats())
    assert decision is not None
    assert (decision.plan, decision.entries) == (FULL, tuple(waiting))
    assert cold.admit(request(0.03, min_rung=1), (), 0.0, 0.0) is not None, "full takes 40 ms"
    assert policy().admit(request(0.03, min_rung=1), (), 0.0, 0.0) is None


def test_a_pinned_plan_runs_warm_or_not() -> None:
    cold = SloPolicy(RUNGS, PartlyWarm(RUNGS, FULL), 8)
    decision = cold.choose([request(1.0, pinned=MIDDLE)], 0.0, 0.0, ArrivalStats())
    assert decision is not None
    assert (decision.plan, decision.reason) == (MIDDLE, "pinned")


def test_with_full_alone_warm_nothing_is_degraded() -> None:
    cold = SloPolicy(RUNGS, PartlyWarm(RUNGS), 8)
    decision = cold.choose([request(0.2)] * 3, 0.0, 0.0, ArrivalStats(rate=1000, allowed_s=0.2))
    assert decision is not None
    assert decision.plan == FULL
