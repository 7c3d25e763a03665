"""Completion times of the queue at one rung, by hand."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from foveate.core.plan import Plan
from foveate.estimation.arrivals import ArrivalStats
from foveate.scheduling.device_demand import NO_DEMAND, DeviceDemand
from foveate.scheduling.forecast import MAX_SHARED_UTILIZATION, SHARED_BATCH_SHARE, Forecast
from foveate.scheduling.policy import Candidate
from foveate.scheduling.queue_snapshot import BatchCosts, QueueSnapshot

FULL = Plan("m", 32)
CHEAP = replace(FULL, reducer="evit:0.3")
COSTS = BatchCosts(np.array([1.0, 2.0]), np.array([0.5, 1.0]), np.array([3, 3]), np.array([5 / 6, 5 / 3]))
"""Cheap takes 1 + n / 2 seconds for n requests, full 2 + n; batches of three are efficient."""


def forecast(
    deadlines: Sequence[float], other_demand: DeviceDemand = NO_DEMAND, safety_factor: float = 1.0
) -> Forecast:
    waiting = [Candidate(at if math.isfinite(at) else 99.0, at, 0, None, "") for at in sorted(deadlines)]
    queue = QueueSnapshot.from_queue(waiting, 0.0, (CHEAP, FULL))
    return Forecast.of(queue, COSTS, other_demand, safety_factor, full_rung=1)


def demand_of(*rows: tuple[float, float], allowed_s: float = math.inf) -> DeviceDemand:
    """Requests to another model: deadline and seconds of each, the same on all plans."""
    deadline, seconds = np.array(rows).T if rows else np.empty((2, 0))
    return DeviceDemand(deadline, deadline, seconds, seconds, allowed_s=allowed_s)


def test_the_queue_is_served_in_efficient_batches() -> None:
    done, others = forecast([50.0] * 7).completion_s(1)
    assert done.tolist() == [5.0] * 3 + [10.0] * 3 + [13.0]
    assert len(others) == 0
    cheap, _ = forecast([50.0] * 7).completion_s(0)
    assert cheap.tolist() == [2.5] * 3 + [5.0] * 3 + [6.5]


def test_the_first_batch_is_as_large_as_its_deadlines_allow() -> None:
    done, _ = forecast([4.0, 50.0, 50.0, 50.0, 50.0]).completion_s(1)
    assert done.tolist() == [4.0, 4.0, 9.0, 9.0, 9.0]


@pytest.mark.parametrize(("factor", "size"), [(1.0, 2), (1.1, 1), (9.0, 1)])
def test_a_batch_fits_with_the_safety_factor_and_has_at_least_one_request(factor: float, size: int) -> None:
    result = forecast([4.0, 50.0, 50.0], safety_factor=factor)
    assert result.batch_size(result.queue.slack_s, 1) == size


def test_requests_to_other_models_run_between_the_batches_in_the_order_of_deadlines() -> None:
    demand = demand_of((60.0, 1.0), (90.0, 2.0))
    done, others = forecast([50.0] * 3 + [70.0] * 3, demand).completion_s(1)
    assert done.tolist() == [5.0] * 3 + [11.0] * 3  # the request due at 60 runs before the second batch
    assert others.tolist() == [6.0, 13.0]


def test_degraded_requests_to_other_models_cost_less() -> None:
    demand = replace(demand_of((60.0, 1.0)), min_s=np.array([0.25]))
    assert forecast([50.0], demand).cost_ratio(0) == pytest.approx(0.5)
    assert forecast([50.0], demand).completion_s(0)[1].tolist() == [2.0]
    assert forecast([50.0], demand).completion_s(1)[1].tolist() == [4.0]


def test_a_batch_leaves_other_models_their_time() -> None:
    assert math.isinf(forecast([50.0]).max_batch_s)
    assert forecast([50.0], demand_of((8.0, 2.0))).max_batch_s == pytest.approx(6.0)
    assert forecast([50.0], demand_of((8.0, 2.0)), 1.5).max_batch_s == pytest.approx(5.0)
    late_anyway = demand_of((1.0, 2.0), (8.0, 2.0))
    assert forecast([50.0], late_anyway).max_batch_s == pytest.approx(4.0)
    expected = demand_of(allowed_s=4.0)
    assert forecast([50.0], expected).max_batch_s == pytest.approx(SHARED_BATCH_SHARE * 4.0)


def test_a_request_to_another_model_counts_as_delayed_only_if_it_could_be_in_time() -> None:
    result = forecast([50.0], demand_of((3.0, 1.0), (3.5, 3.0)))
    assert not result.delays_others(np.array([2.5, 9.0]))  # the second one needs 4 s and has 3.5 s
    assert result.delays_others(np.array([3.5, 9.0]))


def test_requests_on_time_are_counted_on_the_cheapest_plans() -> None:
    deadlines = [2.6, 2.6, 2.6, 4.9, 50.0]
    result = forecast(deadlines)
    assert result.completion_s(0)[0].tolist() == [2.5, 2.5, 2.5, 4.5, 4.5]
    assert result.count_on_time() == 5
    assert forecast([*deadlines[:3], 4.4, 50.0]).count_on_time() == 4
    kept = result.select(np.array([True, False, False, False, True]))
    assert kept.completion_s(0)[0].tolist() == [2.0, 2.0]


def test_the_queue_keeps_up_while_backlog_and_growth_fit_into_the_share_of_the_time_allowed() -> None:
    """Three requests take 5 s at full, and 0.6 requests per second need the whole device."""
    result = forecast([50.0] * 3)
    assert result.keeps_up(1, 0.0, ArrivalStats(0.6, 10.0), 0.5)
    assert not result.keeps_up(1, 0.0, ArrivalStats(0.7, 10.0), 0.5)
    assert not result.keeps_up(1, 0.1, ArrivalStats(0.6, 10.0), 0.5)
    assert result.keeps_up(0, 0.1, ArrivalStats(0.7, 10.0), 0.5)
    assert not result.keeps_up(1, 0.0, ArrivalStats(0.6, 10.0, preparing=1), 0.5)
    assert result.keeps_up(1, 9.0, ArrivalStats(9.0, math.inf), 0.5), "requests without deadlines may wait"


def test_a_shared_device_keeps_a_reserve() -> None:
    demand = DeviceDemand(full_share=MAX_SHARED_UTILIZATION, min_share=0.1, allowed_s=100.0)
    result = forecast([50.0], demand)
    assert result.keeps_up(1, 0.0, ArrivalStats(0.0, 100.0), 0.5)
    assert not result.keeps_up(1, 0.0, ArrivalStats(0.01, 100.0), 0.5)
    assert result.keeps_up(0, 0.0, ArrivalStats(0.01, 100.0), 0.5)
