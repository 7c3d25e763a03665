"""The queue and the costs as arrays."""

import math
from dataclasses import replace

import numpy as np
import pytest

from foveate.core.model import Rung
from foveate.core.plan import Plan
from foveate.estimation.latency import LatencyModel
from foveate.scheduling.policy import Candidate
from foveate.scheduling.queue_snapshot import BatchCosts, QueueSnapshot

FULL = Plan("m", 32)
CHEAP, PINNED = replace(FULL, reducer="evit:0.3"), replace(FULL, reducer="tome:8")
QUEUE = (
    Candidate(10.5, 11.5, 0, None, ""),
    Candidate(11.0, 11.0, 1, None, ""),
    Candidate(12.0, math.inf, 0, PINNED, ""),
    Candidate(13.0, 13.0, 1, CHEAP, ""),
)


def snapshot() -> QueueSnapshot:
    return QueueSnapshot.from_queue(QUEUE, 10.0, (CHEAP, FULL))


def test_times_are_relative_to_the_start_of_the_next_batch() -> None:
    queue = snapshot()
    assert queue.slack_s.tolist() == [1.5, 1.0, math.inf, 3.0]
    assert queue.virtual_deadline_s.tolist() == [0.5, 1.0, 2.0, 3.0]
    assert queue.priority_boost_s.tolist() == [1.0, 0.0, math.inf, 0.0]


def test_pinned_plans_follow_the_rungs() -> None:
    queue = snapshot()
    assert queue.plans == (CHEAP, FULL, PINNED)
    assert queue.pinned.tolist() == [False, False, True, True]
    assert queue.min_plan.tolist() == [0, 1, 2, 0]


def test_each_request_gets_the_rung_or_its_minimum_or_its_pinned_plan() -> None:
    queue = snapshot()
    assert queue.plan_at(0).tolist() == [0, 1, 2, 0]
    assert queue.plan_at(1).tolist() == [1, 1, 2, 0]


def test_rows_can_be_selected() -> None:
    kept = snapshot().select(np.array([True, False, True, False]))
    assert kept.slack_s.tolist() == [1.5, math.inf]
    assert kept.plan_at(1).tolist() == [1, 2]
    assert kept.plans == (CHEAP, FULL, PINNED)


def test_costs_are_those_of_the_latency_model() -> None:
    ladder = (
        Rung(CHEAP, 1.0, 5, 0.8, {1: 0.011, 8: 0.018}),  # 10 ms, and 1 ms per item
        Rung(FULL, 4.0, 5, 1.0, {1: 0.040, 8: 0.320}),  # 40 ms per item
    )
    latency = LatencyModel(ladder)
    costs = BatchCosts.predict((CHEAP, FULL), latency, 16)
    assert costs.fixed_s.tolist() == pytest.approx([0.010, 0.0], abs=1e-9)
    assert costs.item_s.tolist() == pytest.approx([0.001, 0.040])
    assert costs.efficient_size.tolist() == [16, 1]
    assert costs.request_s.tolist() == pytest.approx([0.010 / 16 + 0.001, 0.040])


def test_a_rung_may_be_served_by_a_better_one() -> None:
    queue = QueueSnapshot.from_queue(QUEUE, 10.0, (CHEAP, FULL), (1, 1))
    assert queue.min_plan.tolist() == [1, 1, 2, 0], "pinned plans stay as they are"
    assert queue.plan_at(0).tolist() == [1, 1, 2, 0]
