"""Arrival estimates: steady arrivals, bursts, and single requests."""

import random

import pytest

from foveate.estimation.arrivals import ArrivalMeter


def test_a_single_request_has_no_rate() -> None:
    meter = ArrivalMeter(0.01)
    assert meter.read(0.0).rate == 0
    meter.record(5.0, 0.5)
    assert meter.read(5.0).rate == 0
    assert meter.read(5.0).allowed_s == 0.5


@pytest.mark.parametrize("rate", [20.0, 200.0, 2000.0])
def test_a_steady_rate_is_known_within_half_a_second(rate: float) -> None:
    meter = ArrivalMeter(0.01)
    for number in range(int(rate / 2)):
        meter.record(number / rate, 0.5)
    assert meter.read(0.5).rate == pytest.approx(rate, rel=0.35)


def test_a_burst_is_seen_at_once_and_forgotten_soon() -> None:
    meter, draw = ArrivalMeter(0.01), random.Random(0)
    now = 0.0
    while now < 3:
        now += draw.expovariate(50)
        meter.record(now, 0.2)
    steady = meter.read(now).rate
    for number in range(8):
        meter.record(now + number / 1000, 0.2)
    assert meter.read(now + 0.008).rate > 5 * steady
    assert meter.read(now + 0.2).rate < 2 * steady


def test_the_time_allowed_is_a_mean_over_recent_requests() -> None:
    meter = ArrivalMeter(0.01)
    for number in range(400):
        meter.record(number / 100, 0.1 if number < 200 else 0.5)
    assert meter.read(4.0).allowed_s == pytest.approx(0.5, rel=0.02)
