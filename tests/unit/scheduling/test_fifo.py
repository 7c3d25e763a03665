"""The baseline policy: order of arrival, one plan for all requests, no refusals."""

import math
from dataclasses import replace

from foveate.core.model import Rung
from foveate.core.plan import Plan
from foveate.estimation.arrivals import ArrivalStats
from foveate.estimation.latency import LatencyModel
from foveate.scheduling.fifo import Fifo
from foveate.scheduling.policy import BatchDecision, Candidate

FULL = Plan("m", 32)
CHEAP = replace(FULL, reducer="evit:0.5")
RUNGS = (Rung(CHEAP, 1.0, 5, 0.9), Rung(FULL, 2.0, 10, 1.0))
POLICY = Fifo(RUNGS, LatencyModel(RUNGS), max_batch=2)


def request(deadline: float = math.inf, pinned: Plan | None = None) -> Candidate:
    return Candidate(deadline, deadline, 0, pinned, "")


def chosen(*waiting: Candidate) -> BatchDecision[Candidate] | None:
    return POLICY.choose(waiting, 0.0, 0.0, ArrivalStats())


def test_an_empty_queue_gives_no_batch() -> None:
    assert chosen() is None


def test_the_first_requests_run_at_full_even_if_they_are_late() -> None:
    late = [request(1e-9) for _ in range(3)]
    decision = chosen(*late)
    assert decision is not None
    assert (decision.plan, decision.full, decision.refused) == (FULL, True, ())
    assert [entry is queued for entry, queued in zip(decision.entries, late, strict=False)] == [True, True]


def test_a_batch_has_one_plan() -> None:
    pinned, plain = request(pinned=CHEAP), request()
    decision = chosen(pinned, plain, pinned)
    assert decision is not None
    assert (decision.plan, decision.entries) == (CHEAP, (pinned, pinned))
    decision = chosen(plain, pinned)
    assert decision is not None
    assert (decision.plan, decision.entries, decision.full) == (FULL, (plain,), False)


def test_every_request_is_admitted() -> None:
    assert POLICY.admit(request(1e-9), [request()] * 99, 0.0, 60.0) is None
