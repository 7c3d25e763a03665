"""The number of threads of a forward beside other CPU load."""

from dataclasses import replace

import pytest

from foveate.core.batching import WarmedPlan
from foveate.core.model import Rung
from foveate.core.plan import Plan
from foveate.estimation.host_load import CpuLoad
from foveate.estimation.threads import ThreadSelector

FULL = Plan("m", 32)
CHEAP = replace(FULL, reducer="evit:0.3")
LADDER = (
    Rung(CHEAP, 1.0, 5, 0.8, {1: 0.003, 4: 0.006, 8: 0.01}),
    Rung(FULL, 4.0, 9, 1.0, {1: 0.01, 4: 0.034, 8: 0.066}),
)


def test_a_forward_leaves_cores_to_other_work_if_that_is_faster() -> None:
    """Full is nearly twice as fast on two cores; the cheap plan gains a tenth."""
    times = {1: {FULL: {8: 0.066}, CHEAP: {8: 0.009}}, 2: {FULL: {8: 0.035}, CHEAP: {8: 0.0082}}}
    selector = ThreadSelector(LADDER, times)
    assert (selector.threads(FULL), selector.threads(CHEAP)) == (2, 2)
    selector.set_cpu_load(CpuLoad(0.1))
    assert (selector.threads(FULL), selector.threads(CHEAP)) == (2, 1)
    selector.set_cpu_load(CpuLoad(0.9))
    assert (selector.threads(FULL), selector.threads(CHEAP)) == (1, 1)
    assert selector.predict(FULL, 8) == pytest.approx(0.066)
    selector.set_cpu_load(CpuLoad())
    assert selector.predict(FULL, 8) == pytest.approx(0.035)


def test_pending_tasks_affect_short_batches_more_than_long_ones() -> None:
    times = {1: {FULL: {8: 0.066}, CHEAP: {8: 0.0066}}, 2: {FULL: {8: 0.035}, CHEAP: {8: 0.0035}}}
    selector = ThreadSelector(LADDER, times)
    selector.set_cpu_load(CpuLoad(pending_cpu_s=0.01, threads=2))
    assert (selector.threads(FULL), selector.threads(CHEAP)) == (2, 1)
    before = selector.version
    selector.set_cpu_load(CpuLoad(pending_cpu_s=0.011, threads=2))
    assert selector.version == before, "the version stays if no choice changes"
    selector.set_cpu_load(CpuLoad(pending_cpu_s=1.0, threads=2))
    assert (selector.threads(FULL), selector.threads(CHEAP)) == (1, 1)
    assert selector.version > before


def test_a_model_without_gflops_uses_the_threads_of_a_measured_plan() -> None:
    nothing = tuple(replace(rung, gflops=0.0, latency_s=None) for rung in LADDER)
    selector = ThreadSelector(nothing, {1: {FULL: {1: 0.001, 8: 0.004}}, 2: {FULL: {1: 0.001, 8: 0.002}}})
    assert selector.threads(CHEAP) == 2


def test_without_measurements_there_is_one_latency_model() -> None:
    selector = ThreadSelector(LADDER, {})
    assert selector.threads(FULL) == 1
    selector.set_cpu_load(CpuLoad(9.0))
    assert selector.threads(FULL) == 1
    assert selector.predict(FULL, 8) == pytest.approx(0.066, rel=0.03)


def test_a_batch_refits_the_model_of_its_number_of_threads_only() -> None:
    times = {1: {FULL: {8: 0.066}, CHEAP: {8: 0.009}}, 2: {FULL: {8: 0.035}, CHEAP: {8: 0.0082}}}
    selector = ThreadSelector(LADDER, times)
    version = selector.version
    for _ in range(5):
        assert selector.observe(FULL, 8, 0.07, threads=2) > 1
    assert selector.version > version
    assert selector.predict(FULL, 8) == pytest.approx(0.07, rel=0.05)
    selector.set_cpu_load(CpuLoad(0.9))
    assert selector.predict(FULL, 8) == pytest.approx(0.066)
    selector.set_cpu_load(CpuLoad())
    for _ in range(3):
        selector.decay()
    assert selector.predict(FULL, 8) == pytest.approx(0.035, rel=0.1)


SEEDED = {1: {FULL: {1: 0.01, 8: 0.066}}, 2: {FULL: {1: 0.01, 8: 0.035}}}


def test_all_rungs_are_warm_unless_a_warm_up_says_otherwise() -> None:
    selector = ThreadSelector(LADDER, SEEDED)
    assert selector.is_warm(CHEAP)
    selector.set_warm([WarmedPlan(FULL, 8)])
    assert not selector.is_warm(CHEAP)
    assert selector.is_warm(FULL)
    before = selector.version
    selector.add_warm(WarmedPlan(CHEAP, 8))
    assert selector.is_warm(CHEAP)
    assert selector.version > before, "a policy looks again only after a change of the version"


def test_times_of_the_warm_up_replace_what_was_assumed() -> None:
    selector = ThreadSelector(LADDER, SEEDED)
    selector.set_warm([WarmedPlan(FULL, 8)])
    selector.add_warm(WarmedPlan(CHEAP, 8, {1: {1: 0.004, 8: 0.02}, 2: {1: 0.5, 8: 0.5}}))
    assert selector.threads(CHEAP) == 2, "the choice is made anew with the load"
    selector.set_cpu_load(CpuLoad())
    assert selector.threads(CHEAP) == 1
    assert selector.predict(CHEAP, 8) == pytest.approx(0.02)


def test_a_batch_is_at_most_one_size_larger_than_the_largest_that_has_run() -> None:
    ladder = tuple(replace(rung, latency_s={1: 0.01, 8: 0.012}) for rung in LADDER)
    selector = ThreadSelector(ladder, {})
    assert selector.efficient_batch_size(CHEAP, 32) == 32
    selector.set_warm([WarmedPlan(CHEAP, 8), WarmedPlan(FULL, 8)])
    assert selector.efficient_batch_size(CHEAP, 32) == 12
    selector.observe(CHEAP, 12, 0.013, 1)
    assert selector.efficient_batch_size(CHEAP, 32) == 16
    assert selector.efficient_batch_size(FULL, 32) == 12
