"""The demand of several models for one device."""

import math

import numpy as np

from foveate.scheduling.device_demand import NO_DEMAND, DeviceDemand, combined_demand

ONE = DeviceDemand(
    np.array([1.0, 4.0]), np.array([1.0, 4.0]), np.array([0.1, 0.2]), np.zeros(2), 0.5, 0.1, 2.0
)
TWO = DeviceDemand(np.array([2.0]), np.array([2.5]), np.array([0.3]), np.array([0.25]), 0.25, 0.25, 0.5)


def test_combined_demand_is_in_the_order_of_virtual_deadlines() -> None:
    combined = combined_demand([ONE, NO_DEMAND, TWO])
    assert combined.virtual_deadline.tolist() == [1.0, 2.0, 4.0]
    assert combined.deadline.tolist() == [1.0, 2.5, 4.0]
    assert combined.full_s.tolist() == [0.1, 0.3, 0.2]
    assert combined.min_s.tolist() == [0.0, 0.25, 0.0]
    assert (combined.full_share, combined.min_share, combined.allowed_s) == (0.75, 0.35, 0.5)


def test_degraded_requests_cost_a_share_of_full_but_no_less_than_they_accept() -> None:
    combined = combined_demand([ONE, TWO])
    assert combined.request_s(1.0).tolist() == [0.1, 0.3, 0.2]
    assert combined.request_s(0.5).tolist() == [0.05, 0.25, 0.1]
    assert (combined.share(1.0), combined.share(0.2)) == (0.75, 0.35)


def test_times_can_be_made_relative() -> None:
    combined = combined_demand([ONE, TWO]).relative_to(1.5)
    assert combined.deadline.tolist() == [-0.5, 1.0, 2.5]
    assert combined.virtual_deadline.tolist() == [-0.5, 0.5, 2.5]
    assert NO_DEMAND.relative_to(1.5) is NO_DEMAND


def test_demand_is_active_if_requests_wait_or_have_arrived_recently() -> None:
    assert not NO_DEMAND.active
    assert TWO.active
    assert DeviceDemand(allowed_s=1.0).active


def test_no_active_demand_combines_to_none() -> None:
    assert combined_demand([]) is NO_DEMAND
    assert combined_demand([NO_DEMAND, DeviceDemand(allowed_s=math.inf)]) is NO_DEMAND
