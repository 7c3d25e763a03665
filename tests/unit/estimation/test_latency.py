"""The latency model: seeds, refits, outliers, machines that slow down."""

import random
from dataclasses import replace

import pytest

from foveate.core.model import Rung
from foveate.core.plan import Plan
from foveate.estimation.host_load import CpuLoad
from foveate.estimation.latency import KNOWN, RECENT, LatencyModel
from foveate.estimation.threads import ThreadSelector

FULL = Plan("m", 32)
CHEAP = replace(FULL, reducer="evit:0.3")
LADDER = (
    Rung(CHEAP, 1.0, 5, 0.8, {1: 0.003, 4: 0.006, 8: 0.01}),
    Rung(FULL, 4.0, 9, 1.0, {1: 0.01, 4: 0.034, 8: 0.066}),
)


def test_it_starts_with_what_the_profile_says() -> None:
    model = LatencyModel(LADDER)
    for rung in LADDER:
        assert rung.latency_s is not None
        for size, seconds in rung.latency_s.items():
            assert model.predict(rung.plan, size) == pytest.approx(seconds, rel=0.03)


def test_unmeasured_rungs_cost_what_their_share_of_the_gflops_says() -> None:
    model = LatencyModel((replace(LADDER[0], latency_s=None), LADDER[1]))
    assert model.predict(CHEAP, 4) == pytest.approx(0.034 / 4, rel=0.03)


def test_a_plan_that_never_ran_is_taken_for_full_and_soon_known() -> None:
    model, unknown = LatencyModel(LADDER), replace(FULL, reducer="tome:3")
    assert model.predict(unknown, 8) == pytest.approx(0.066, rel=0.03)
    for size in (1, 8, 4, 8, 1, 8):
        model.observe(unknown, size, 0.002 + 0.001 * size)
        model.observe(FULL, 8, 0.066)
        model.observe(FULL, 8, 0.066)
    assert model.predict(unknown, 8) == pytest.approx(0.01, rel=0.2)
    assert model.predict(FULL, 8) == pytest.approx(0.066, rel=0.05)


def test_a_machine_that_slows_down_is_known_after_five_batches_whatever_they_ran() -> None:
    model = LatencyModel(LADDER)
    for _ in range(RECENT // 2 + 1):
        model.observe(CHEAP, 8, 2 * 0.01)
    assert model.predict(FULL, 8) == pytest.approx(2 * 0.066, rel=0.1)
    for _ in range(RECENT):
        model.observe(FULL, 8, 0.066)
    assert model.predict(CHEAP, 8) == pytest.approx(0.01, rel=0.2)


def test_outliers_change_nothing_much() -> None:
    model, draw = LatencyModel(LADDER), random.Random(0)
    for number in range(300):
        stalled = 50 if number % 10 == 3 else 1
        model.observe(FULL, 8, stalled * 0.066 * draw.uniform(0.95, 1.05))
    assert model.predict(FULL, 8) == pytest.approx(0.066, rel=0.12)
    assert model.predict(FULL, 1) == pytest.approx(0.01, rel=0.15)


def test_a_plan_whose_profile_is_wrong_is_learnt_while_others_stay() -> None:
    model = LatencyModel(LADDER)
    for _ in range(200):
        for size, seconds in ((1, 0.005), (8, 0.02)):
            model.observe(CHEAP, size, seconds)
        for size, seconds in ((1, 0.01), (8, 0.066)) * 2:
            model.observe(FULL, size, seconds)
    assert model.predict(CHEAP, 1) == pytest.approx(0.005, rel=0.15)
    assert model.predict(CHEAP, 8) == pytest.approx(0.02, rel=0.15)
    assert model.predict(FULL, 8) == pytest.approx(0.066, rel=0.05)


def test_the_margin_follows_the_error() -> None:
    steady, wild, draw = LatencyModel(LADDER), LatencyModel(LADDER), random.Random(1)
    for _ in range(100):
        steady.observe(FULL, 8, 0.066)
        wild.observe(FULL, 8, 0.066 * draw.uniform(0.7, 1.3))
    assert steady.safety_factor == pytest.approx(1.05)
    assert 1.15 < wild.safety_factor <= 1.5


def test_it_says_what_a_batch_took_over_what_was_predicted() -> None:
    model = LatencyModel(LADDER)
    assert model.observe(FULL, 8, 2 * model.predict(FULL, 8)) == pytest.approx(2)


@pytest.mark.parametrize(
    ("latency", "size"), [({1: 0.01, 8: 0.08}, 1), ({1: 0.01, 8: 0.059}, 9), ({1: 0.01, 8: 0.011}, 16)]
)
def test_batches_are_as_large_as_makes_pictures_cheaper(latency: dict[int, float], size: int) -> None:
    assert LatencyModel((replace(LADDER[1], latency_s=latency),)).efficient_batch_size(FULL, 16) == size


def test_plans_that_ran_long_ago_are_forgotten() -> None:
    model = LatencyModel(LADDER)
    for number in range(KNOWN + 50):
        model.observe(replace(FULL, reducer=f"tome:{number}"), 1, 0.01)
    assert len(model._lines) == len(model._points) <= KNOWN + len(LADDER)
    assert model.predict(CHEAP, 8) < model.predict(FULL, 8) / 3
    assert model.predict(FULL, 1) > 0


def test_a_model_that_costs_nothing_has_a_latency_all_the_same() -> None:
    nothing = tuple(replace(rung, gflops=0.0, latency_s=None) for rung in LADDER)
    model = LatencyModel(nothing)
    assert model.predict(CHEAP, 1) == model.predict(FULL, 1) > 0
    lanes = ThreadSelector(nothing, {1: {FULL: {1: 0.001, 8: 0.004}}, 2: {FULL: {1: 0.001, 8: 0.002}}})
    assert lanes.threads(CHEAP) == 2


def test_a_forward_leaves_cores_to_others_where_its_threads_would_wait_for_one_another() -> None:
    """Full is nearly twice as fast on two cores; the cheap plan gains a tenth."""
    times = {1: {FULL: {8: 0.066}, CHEAP: {8: 0.009}}, 2: {FULL: {8: 0.035}, CHEAP: {8: 0.0082}}}
    lanes = ThreadSelector(LADDER, times)
    assert (lanes.threads(FULL), lanes.threads(CHEAP)) == (2, 2)
    lanes.set_cpu_load(CpuLoad(0.1))
    assert (lanes.threads(FULL), lanes.threads(CHEAP)) == (2, 1)
    lanes.set_cpu_load(CpuLoad(0.9))
    assert (lanes.threads(FULL), lanes.threads(CHEAP)) == (1, 1)
    assert lanes.predict(FULL, 8) == pytest.approx(0.066)
    lanes.set_cpu_load(CpuLoad())
    assert lanes.predict(FULL, 8) == pytest.approx(0.035)


def test_what_waits_to_be_made_ready_crowds_short_batches_and_hardly_long_ones() -> None:
    times = {1: {FULL: {8: 0.066}, CHEAP: {8: 0.0066}}, 2: {FULL: {8: 0.035}, CHEAP: {8: 0.0035}}}
    lanes = ThreadSelector(LADDER, times)
    lanes.set_cpu_load(CpuLoad(pending_s=0.01, lanes=2))
    assert (lanes.threads(FULL), lanes.threads(CHEAP)) == (2, 1)
    before = lanes.version
    lanes.set_cpu_load(CpuLoad(pending_s=0.011, lanes=2))
    assert lanes.version == before, "nothing is reckoned anew where nothing changes"
    lanes.set_cpu_load(CpuLoad(pending_s=1.0, lanes=2))
    assert (lanes.threads(FULL), lanes.threads(CHEAP)) == (1, 1)
    assert lanes.version > before


def test_what_was_not_timed_now_is_taken_in_proportion_to_what_was() -> None:
    times = {CHEAP: {1: 0.006, 8: 0.02}, FULL: {}}
    model = LatencyModel(LADDER, times)
    assert model.predict(CHEAP, 8) == pytest.approx(0.02, rel=0.03)
    assert model.predict(FULL, 8) == pytest.approx(2 * 0.066, rel=0.03)


def test_a_guess_that_was_off_once_is_taken_to_be_off_everywhere() -> None:
    """Else batches of one, which is all that has been seen, would seem to be all that is worth making."""
    model = LatencyModel(tuple(replace(rung, latency_s=None) for rung in LADDER))
    before = model.efficient_batch_size(FULL, 32)
    for _ in range(20):
        model.observe(FULL, 1, 0.0004)
    assert model.predict(FULL, 1) == pytest.approx(0.0004, rel=0.1)
    assert model.efficient_batch_size(FULL, 32) >= before > 8


def test_a_first_run_that_was_held_up_is_not_believed_for_long() -> None:
    model = LatencyModel(LADDER)
    pinned = Plan("m", 32, reducer="tome:3")
    model.observe(pinned, 1, 10.0)
    for _ in range(30):
        model.observe(pinned, 1, 0.01)
    assert model.predict(pinned, 1) < 0.02
    assert model.slowdown == pytest.approx(1, rel=0.3), "and it tells nothing of the machine"


def test_a_first_large_batch_that_was_held_up_is_not_the_last_one() -> None:
    model = LatencyModel((Rung(FULL, 0.0, 1, 1.0),))
    for _ in range(20):
        model.observe(FULL, 1, 0.0002)
    for size in (8, 6, 16):
        model.observe(FULL, size, 0.004)
        assert model.efficient_batch_size(FULL, 32) > 8
