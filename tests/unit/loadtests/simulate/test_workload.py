"""Workloads: classes drawn by their shares, deadlines."""

import math

import numpy as np
import pytest

from loadtests.simulate.workload import RequestClass, Workload


def test_classes_are_drawn_by_their_shares() -> None:
    classes = [RequestClass(1.0, share=3.0), RequestClass(2.0, share=1.0)]
    workload = Workload.draw(np.linspace(0, 1, 4000), classes, 0)
    assert len(workload) == 4000
    assert (workload.class_index == 0).mean() == pytest.approx(0.75, abs=0.03)
    again = Workload.draw(workload.at, classes, 0)
    assert np.array_equal(workload.class_index, again.class_index)
    other = Workload.draw(workload.at, classes, 1)
    assert not np.array_equal(workload.class_index, other.class_index)


def test_deadlines_follow_from_the_classes() -> None:
    classes = (RequestClass(0.5), RequestClass(math.inf))
    workload = Workload(np.array([1.0, 2.0, 3.0]), classes, np.array([0, 1, 0]))
    assert workload.deadline.tolist() == [1.5, math.inf, 3.5]
