"""The record of a simulation: outcomes, shares and means."""

import math

import numpy as np
import pytest

from loadtests.simulate.record import End, SimulationRecord
from loadtests.simulate.workload import RequestClass, SimulatedRequest, Workload

CLASSES = (RequestClass(1.0), RequestClass(1.0, min_quality=0.9))


def request(number: int, deadline: float = 1.0) -> SimulatedRequest:
    return SimulatedRequest(number, 0.0, deadline, deadline, 0, "")


def record_of(*class_index: int) -> SimulationRecord:
    at = np.zeros(len(class_index))
    return SimulationRecord(Workload(at, CLASSES, np.array(class_index)))


def test_no_request_ends_twice() -> None:
    record = record_of(0)
    record.set_end(request(0), End.MET)
    with pytest.raises(ValueError, match="twice"):
        record.set_end(request(0), End.MISSED)


def test_an_answer_counts_by_its_time_and_quality() -> None:
    record = record_of(0, 1, 1, 0, 0)
    record.set_answered(request(0), 0.5, 0.8)
    record.set_answered(request(1), 0.5, 0.8)
    record.set_answered(request(2), 1.0, 1.0)
    record.set_answered(request(3), 1.5, 1.0)
    record.set_end(request(4), End.REFUSED)
    ends = [End(int(end)) for end in record.end]
    assert ends == [End.MET, End.LOW_QUALITY, End.MET, End.MISSED, End.REFUSED]
    assert record.attainment == record.share(End.MET) == pytest.approx(0.4)
    assert record.utility == pytest.approx(1.8)
    assert record.mean_quality == pytest.approx((0.8 + 0.8 + 1.0) / 3)
    assert record.latency_s[:4].tolist() == [0.5, 0.5, 1.0, 1.5] and math.isnan(record.latency_s[4])


def test_means_without_data_are_not_a_number() -> None:
    record = record_of(0)
    assert math.isnan(record.mean_quality)
    assert math.isnan(record.mean_batch)
    assert math.isnan(record.decision_us)
    record.batches, record.ran = 2, 5
    record.decisions, record.deciding_s = 4, 1e-3
    assert (record.mean_batch, record.decision_us) == pytest.approx((2.5, 250.0))
