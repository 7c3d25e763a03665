"""The policy on tables: what waits, the time, how requests have been coming; who runs, and under what."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from foveate.core.model import Rung
from foveate.core.plan import Plan
from foveate.core.request import Objective
from foveate.estimation.arrivals import ArrivalStats
from foveate.estimation.latency import LatencyModel
from foveate.scheduling.device_demand import NO_DEMAND, DeviceDemand
from foveate.scheduling.policy import BatchDecision, Candidate, virtual_deadline
from foveate.scheduling.slo_policy import SloPolicy

FULL = Plan("m", 32)
CHEAP, MIDDLE = replace(FULL, reducer="evit:0.3"), replace(FULL, reducer="evit:0.6")
RUNGS = tuple(
    Rung(plan, cost, 5, quality, {1: cost * 0.01, 8: cost * 0.08})
    for plan, cost, quality in ((CHEAP, 1.0, 0.8), (MIDDLE, 2.0, 0.9), (FULL, 4.0, 1.0))
)
"""10, 20 and 40 ms a picture, whatever the batch."""
BATCHING = tuple(replace(rung, latency_s={1: 0.01 * rung.gflops, 8: 0.017 * rung.gflops}) for rung in RUNGS)
"""The same alone, and each one more costs a tenth: batches pay."""


def policy(rungs: Sequence[Rung] = RUNGS, max_batch: int = 8) -> SloPolicy:
    return SloPolicy(rungs, LatencyModel(rungs), max_batch)


def one(
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
    flow: ArrivalStats = ArrivalStats(),  # noqa: B008  a frozen value
    rungs: Sequence[Rung] = RUNGS,
    free_at: float = 0.0,
    others: DeviceDemand = NO_DEMAND,
) -> BatchDecision[Candidate]:
    decision = policy(rungs).choose(waiting, 0.0, free_at, flow, others)
    assert decision is not None
    return decision


def test_nobody_waits_nothing_runs() -> None:
    assert policy().choose((), 0.0, 0.0, ArrivalStats()) is None


def test_a_lone_request_gets_full() -> None:
    decision = chosen([one(1.0)])
    assert (decision.plan, len(decision.entries), decision.reason) == (FULL, 1, "full")


@pytest.mark.parametrize(
    ("deadline_s", "plan"), [(0.045, FULL), (0.041, MIDDLE), (0.022, MIDDLE), (0.02, CHEAP), (0.0101, CHEAP)]
)
def test_a_tight_deadline_gets_the_best_plan_that_fits_with_its_margin(deadline_s: float, plan: Plan) -> None:
    decision = chosen([one(deadline_s)])
    assert (decision.plan, decision.refused) == (plan, ())
    assert decision.reason == ("full" if plan == FULL else "deadline")


def test_what_runs_now_counts() -> None:
    assert chosen([one(0.06)]).plan == FULL
    assert chosen([one(0.06)], free_at=0.03).plan == MIDDLE


@pytest.mark.parametrize(("count", "plan"), [(4, FULL), (5, MIDDLE), (9, MIDDLE), (10, CHEAP), (40, CHEAP)])
def test_everybody_gets_the_rung_at_which_all_are_in_time(count: int, plan: Plan) -> None:
    """At 40, 20 and 10 ms a picture and 5% of margin, 0.2 s are enough for 4, 9 and 19."""
    decision = chosen([one(0.2) for _ in range(count)])
    assert decision.plan == plan


def test_a_tight_one_behind_degrades_those_before_it() -> None:
    early = [one(10.0, virtual_deadline=0.0) for _ in range(3)]
    assert chosen(early).plan == FULL
    assert chosen([*early, one(0.1)]).plan == MIDDLE


def test_a_floor_is_kept_and_others_make_up_for_it() -> None:
    waiting = [one(0.1, min_rung=2), one(0.1), one(0.1)]
    first = chosen(waiting)
    assert (first.plan, first.entries) == (FULL, (waiting[0],))
    rest = chosen(waiting[1:], free_at=0.04)
    assert rest.plan == MIDDLE


def test_who_is_too_late_at_its_floor_is_refused_and_harms_nobody() -> None:
    doomed, fine = one(0.03, min_rung=2), one(0.05)
    decision = chosen([doomed, fine])
    assert decision.refused == (doomed,)
    assert decision.entries == (fine,)
    alone = chosen([doomed])
    assert (alone.refused, alone.entries) == ((doomed,), ())


def test_a_pinned_plan_is_what_it_gets() -> None:
    pinned = one(1.0, pinned=CHEAP)
    decision = chosen([pinned, one(1.0)])
    assert (decision.plan, decision.entries, decision.reason) == (CHEAP, (pinned,), "pinned")


def test_a_pinned_plan_that_nobody_measured_is_taken_for_as_dear_as_full() -> None:
    unknown = replace(FULL, reducer="tome:3")
    assert chosen([one(0.1, pinned=unknown), one(0.1)]).refused == ()
    assert policy().admit(one(0.03, pinned=unknown), [], 0.0, 0.0) is not None
    assert policy().admit(one(0.05, pinned=unknown), [], 0.0, 0.0) is None


def test_batches_are_made_where_they_pay_and_only_of_one_plan() -> None:
    waiting = [one(9.0), one(9.0, pinned=CHEAP), *(one(9.0) for _ in range(20))]
    together = chosen(waiting, rungs=BATCHING)
    assert len(together.entries) == 8
    assert together.full
    assert waiting[1] not in together.entries
    assert len(chosen(waiting).entries) == 1, "a batch that makes no picture cheaper only keeps them waiting"


def test_a_batch_makes_nobody_in_it_late_nor_the_next() -> None:
    """Full takes 40 ms alone and 4 more for each one that joins, with 5% of margin."""
    tight = [one(0.0515), *(one(9.0) for _ in range(7))]
    assert len(chosen(tight, rungs=BATCHING).entries) == 3
    next_pinned = [one(9.0, virtual_deadline=0.0, min_rung=2) for _ in range(7)]
    decision = chosen([*next_pinned, one(0.07, pinned=CHEAP)], rungs=BATCHING)
    assert len(decision.entries) == 4, "10.5 of 70 ms are left for whoever is next, and five are no batch"


@pytest.mark.parametrize(
    ("rate", "plan"), [(20, FULL), (80, FULL), (82, MIDDLE), (165, MIDDLE), (167, CHEAP), (500, CHEAP)]
)
def test_as_many_as_come_must_be_servable(rate: float, plan: Plan) -> None:
    """Full serves 25 a second, and in a quarter of a second the queue may grow to 0.6 of the 1 s allowed."""
    decision = chosen([one(1.0)], ArrivalStats(rate, 1.0))
    assert decision.plan == plan
    assert decision.reason == ("full" if plan == FULL else "load")


def test_without_deadlines_there_is_nothing_to_hurry_for() -> None:
    decision = chosen([one(virtual_deadline=0.0) for _ in range(100)], ArrivalStats(1e4, math.inf))
    assert decision.plan == FULL


def test_admission_refuses_what_cannot_be_in_time_at_its_floor() -> None:
    waiting = [one(0.3) for _ in range(10)]
    assert policy().admit(one(0.31), waiting, 0.0, 0.0) is None
    newcomer = one(0.305, min_rung=2)
    assert policy().admit(newcomer, waiting, 0.0, 0.0) is None
    refusal = policy().admit(newcomer, waiting, 0.0, 0.2)
    assert refusal is not None
    assert refusal.entry is newcomer
    assert refusal.wait_s == pytest.approx(0.3)


def test_admission_keeps_what_those_who_wait_were_promised() -> None:
    waiting = [one(0.12, min_rung=2), one(0.12, min_rung=2)]
    assert policy().admit(one(0.1), waiting, 0.0, 0.0) is None
    refusal = policy().admit(one(0.1, min_rung=2), waiting, 0.0, 0.0)
    assert refusal is not None


def test_without_a_deadline_nobody_is_refused() -> None:
    assert policy().admit(one(virtual_deadline=0.0), [one(0.1)] * 1000, 0.0, 99.0) is None


def test_the_flood_of_one_tenant_is_refused_and_not_what_others_send() -> None:
    flood = [one(0.1, tenant="a") for _ in range(9)]
    refusal = policy().admit(one(0.1, tenant="b"), flood, 0.0, 0.0)
    assert refusal is not None
    assert refusal.entry is flood[-1]
    again = policy().admit(one(0.1, tenant="a"), flood, 0.0, 0.0)
    assert again is not None
    assert not any(again.entry is other for other in flood)


def test_nobody_goes_for_a_newcomer_that_is_too_late_all_the_same() -> None:
    flood = [one(9.0, tenant="a") for _ in range(9)]
    hopeless = one(0.005, tenant="b")
    refusal = policy().admit(hopeless, flood, 0.0, 0.0)
    assert refusal is not None
    assert refusal.entry is hopeless


def test_who_has_no_deadline_is_not_refused_in_anothers_place() -> None:
    flood = [one(virtual_deadline=0.05, tenant="a") for _ in range(9)]
    newcomer = one(0.06, tenant="b")
    refusal = policy().admit(newcomer, flood, 0.0, 0.0)
    assert refusal is not None
    assert refusal.entry is newcomer


def test_a_head_start_wins_over_who_would_be_late_for_it() -> None:
    plain = one(0.05, min_rung=2)
    urgent = one(0.06, min_rung=1, virtual_deadline=-0.94)
    refusal = policy().admit(urgent, [plain], 0.0, 0.0)
    assert refusal is not None
    assert refusal.entry is plain
    same = policy().admit(one(0.045, min_rung=1), [plain], 0.0, 0.0)
    assert same is not None
    assert same.entry is not plain


def test_one_that_is_lost_stands_in_nobodys_way() -> None:
    lost = one(0.02, min_rung=2)
    assert policy().admit(one(0.015), [lost], 0.0, 0.0) is None
    fine = [one(0.5, virtual_deadline=0.0), lost, one(0.5)]
    decision = chosen(fine)
    assert decision.refused == (lost,)
    assert decision.plan == FULL


def test_what_is_not_ready_yet_takes_no_time_of_the_device() -> None:
    waiting = [one(0.15)]
    assert policy().admit(one(0.1), waiting, 0.0, 0.0, ready_at=0.08) is None
    assert policy().admit(one(0.1), waiting, 0.0, 0.0, ready_at=0.095) is not None


def test_where_some_have_to_go_it_is_nobody_without_a_deadline_nor_with_a_head_start() -> None:
    calm, urgent = one(virtual_deadline=0.0, min_rung=2), one(0.1, min_rung=2, virtual_deadline=0.05)
    dear = [one(0.125, min_rung=2) for _ in range(2)]
    cheap = [one(0.13) for _ in range(4)]
    decision = chosen([calm, urgent, *dear, *cheap])
    assert decision.refused == tuple(dear)
    assert decision.entries == (calm,)


def beside(
    *waiting: tuple[float, float, float],
    full_share: float = 0.0,
    least_share: float = 0.0,
    allowed_s: float = 9.0,
) -> DeviceDemand:
    """Of another model: deadline, seconds at full, and at the least that is accepted."""
    deadline, full_s, least_s = np.array(waiting).T if waiting else np.empty((3, 0))
    return DeviceDemand(deadline, deadline, full_s, least_s, full_share, least_share, allowed_s)


def test_a_device_that_others_use_too_is_a_slower_one() -> None:
    flow = ArrivalStats(10.0, 0.5)
    assert chosen([one(0.5)], flow).plan == FULL
    easing = beside(full_share=1.0)  # 1.4 of the device at full, 0.7 with half of it spent on each
    assert chosen([one(0.5)], flow, others=easing).plan == MIDDLE
    assert chosen([one(0.5)], flow, others=beside(full_share=2.0)).plan == CHEAP
    assert chosen([one(0.5)], flow, others=beside(full_share=2.0)).reason == "load"


def test_who_is_due_later_gives_way_and_is_eased_so_that_all_are_in_time() -> None:
    soon = beside((0.1, 0.03, 0.03))
    assert chosen([one(0.5)], others=soon).plan == FULL
    assert chosen([one(0.08)], others=beside((0.06, 0.03, 0.03))).plan == MIDDLE, "40 would make it late"
    crowd = beside(*((0.3 + step / 1e3, 0.06, 0.0) for step in range(5)))
    relaxed = chosen([one(1.0)], others=crowd)
    assert relaxed.plan == MIDDLE, "five at full and this one take 0.34 s, the last has 0.304"
    assert relaxed.reason == "load"


def test_who_has_no_deadline_has_a_turn_beside_others_all_the_same() -> None:
    """Its turn is in a second; the other's is before, and there is time for both at full."""
    calm = [one(virtual_deadline=1.0), one(virtual_deadline=1.001)]
    assert chosen(calm, others=beside((0.5, 0.03, 0.03))).plan == FULL
    assert chosen(calm, others=beside((0.05, 0.03, 0.03))).plan != FULL
    endless = DeviceDemand(np.array([0.9]), np.array([math.inf]), np.array([0.1]), np.array([0.1]))
    assert chosen(calm, others=endless).plan == FULL


def test_who_is_lost_anyhow_takes_nothing_from_others() -> None:
    lost = beside((0.01, 0.5, 0.2))
    assert chosen([one(1.0) for _ in range(3)], others=lost).plan == FULL


def test_a_batch_leaves_time_for_who_is_due_on_another_model() -> None:
    waiting = [one(5.0) for _ in range(6)]
    assert len(chosen(waiting, rungs=BATCHING).entries) == 6
    assert len(chosen(waiting, others=beside((0.09, 0.03, 0.03)), rungs=BATCHING).entries) == 4


def test_a_newcomer_must_not_make_another_model_late() -> None:
    """Cheap takes 10 ms. Who waits on the other model takes 50 and has 70, or 55."""
    newcomer = one(0.06)
    wide, narrow = beside((0.07, 0.1, 0.05)), beside((0.055, 0.1, 0.05))
    assert policy().admit(newcomer, (), 0.0, 0.0, others=wide) is None
    assert policy().admit(one(0.05), (), 0.0, 0.0, others=narrow) is not None
    assert policy().admit(one(0.2), (), 0.0, 0.0, others=narrow) is None, "it is served after"
    behind = policy().admit(one(0.06), (), 0.0, 0.0, others=narrow)
    assert behind is not None and behind.wait_s == pytest.approx(0.05)


def test_those_who_are_being_made_ready_count_as_waiting() -> None:
    assert chosen([one(0.5)], ArrivalStats(20.0, 0.5, preparing=2)).plan == FULL
    assert chosen([one(0.5)], ArrivalStats(20.0, 0.5, preparing=20)).plan != FULL


def test_a_priority_is_a_head_start_and_nobody_is_overtaken_for_ever() -> None:
    order = partial(virtual_deadline, default_deadline_s=1.0, priority_boost_s=2.0)
    old = order(Objective(), 0.0)
    assert order(Objective(priority=1), 1.5) < old
    assert order(Objective(priority=1), 2.5) > old
    assert order(Objective(deadline=0.5), 0.0) < old < order(Objective(priority=-1), 0.0)


def test_a_batch_takes_no_more_of_what_others_allow_than_a_guest_may() -> None:
    """Six at full take 60 ms; who has a deadline of 0.2 s on another model may be kept waiting for 50."""
    waiting = [one(5.0) for _ in range(6)]
    brief = chosen(waiting, others=beside(full_share=0.01, allowed_s=0.2), rungs=BATCHING)
    assert 1 <= len(brief.entries) <= 3 and brief.plan == FULL
    none = beside(full_share=0.01, allowed_s=0.001)
    assert len(chosen(waiting, others=none, rungs=BATCHING).entries) == 1
