"""The simulated engine: costs, outcomes and the order of events, by hand on tiny ladders."""

from collections.abc import Sequence

import numpy as np
import pytest

from foveate.core.errors import SetupError
from foveate.core.model import Rung
from foveate.core.plan import Plan
from foveate.estimation.arrivals import ArrivalStats
from foveate.estimation.latency import Predictor
from foveate.scheduling.device_demand import NO_DEMAND, DeviceDemand
from foveate.scheduling.fifo import Fifo
from foveate.scheduling.policy import BatchDecision, Policy, Refusal, W
from loadtests.arrivals import schedule
from loadtests.simulate.__main__ import _arguments, read_rungs, run
from loadtests.simulate.baselines import policies
from loadtests.simulate.machine import CALM, Disturbance, Machine, costs, seconds_by_size
from loadtests.simulate.record import End, Record
from loadtests.simulate.run import World, simulate
from loadtests.simulate.workload import Job, Kind, Workload

FULL = Plan("tiny", 32)
LIGHT = Plan("tiny", 32, reducer="evit:0.5")
RUNGS = (
    Rung(LIGHT, 0.25, 5, 0.8, {1: 0.25, 2: 0.5}),
    Rung(FULL, 1.0, 10, 1.0, {1: 1.0, 2: 2.0}),
)
WORLD = World(RUNGS, max_batch=2, disturbance=CALM)
INFINITE = float("inf")


def asked(at: Sequence[float], slo_s: float = INFINITE, min_quality: float = 0.0) -> Workload:
    return Workload.draw(np.array(at), [Kind(slo_s, min_quality)], 0)


def ends(record: Record) -> list[End]:
    return [End(int(end)) for end in record.end]


class Lone(Fifo):
    """One at a time."""

    def choose(
        self,
        waiting: Sequence[W],
        now: float,
        free_at: float,
        arrivals: ArrivalStats,
        others: DeviceDemand = NO_DEMAND,
    ) -> BatchDecision[W] | None:
        return BatchDecision((waiting[0],), self.plan, True) if waiting else None


class Newest(Lone):
    """A newcomer takes the place of who waits."""

    def admit(
        self,
        entry: W,
        waiting: Sequence[W],
        now: float,
        free_at: float,
        ready_at: float = 0.0,
        others: DeviceDemand = NO_DEMAND,
    ) -> Refusal[W] | None:
        return Refusal(waiting[0], free_at - now, 0.0) if waiting else None


class Idle(Lone):
    """Never serves anybody."""

    def choose(
        self,
        waiting: Sequence[W],
        now: float,
        free_at: float,
        arrivals: ArrivalStats,
        others: DeviceDemand = NO_DEMAND,
    ) -> BatchDecision[W] | None:
        return None


def test_costs_are_straight_lines_through_what_was_measured() -> None:
    table = seconds_by_size({2: 4.0, 4: 5.0}, 6)
    assert table == pytest.approx([0.0, 2.0, 4.0, 4.5, 5.0, 5.5, 6.0])
    assert seconds_by_size({1: 3.0}, 2) == pytest.approx([0.0, 3.0, 6.0])


def test_a_machine_is_slower_noisy_and_held_up_as_it_is_told() -> None:
    table = costs(RUNGS, 2)
    assert Machine(table, Disturbance(3.0, 0.0, 0.0), 0).run(FULL, 2) == 6.0
    assert Machine(table, Disturbance(1.0, 0.0, 1.0, 5.0), 0).run(FULL, 1) == 5.0
    noisy = Machine(table, Disturbance(noise=0.2, hiccups=0.0), 0)
    took = np.array([noisy.run(FULL, 1) for _ in range(5000)])
    assert took.mean() == pytest.approx(1, rel=0.02) and np.log(took).std() == pytest.approx(0.2, rel=0.05)


def test_a_batch_takes_those_who_wait_when_the_machine_is_free() -> None:
    record = simulate(WORLD, Fifo, asked([0.0, 0.5, 0.6, 0.7]), 0)
    # 0 alone until 1; then 1 and 2 together until 3; then 3 until 4.
    assert record.latency_s == pytest.approx([1.0, 2.5, 2.4, 3.3])
    assert (record.batches, record.ran) == (3, 4)
    assert record.attainment == 1.0 and record.utility == 4.0


def test_who_is_bound_ahead_is_not_overtaken_by_whom_the_policy_would_rather_have() -> None:
    workload = Workload(np.array([0.0, 0.1, 0.2]), (Kind(50.0), Kind(50.0, priority=9)), np.array([0, 0, 1]))
    record = simulate(WORLD, Lone, workload, 0)
    assert record.latency_s == pytest.approx([1.0, 1.9, 2.8])


def test_priority_is_a_head_start() -> None:
    workload = Workload(
        np.array([0.0, 0.1, 0.2, 0.3]), (Kind(50.0), Kind(50.0, priority=9)), np.array([0, 0, 0, 1])
    )
    record = simulate(WORLD, Lone, workload, 0)
    assert record.latency_s == pytest.approx([1.0, 1.9, 3.8, 2.7])


def test_who_expires_in_the_queue_costs_no_forward_and_who_is_late_is_missed() -> None:
    record = simulate(WORLD, Lone, asked([0.0, 0.1, 0.2, 0.3], slo_s=1.5), 0)
    # The second is bound ahead and ends at 2.0, too late; the others' deadlines pass while they wait.
    assert ends(record) == [End.KEPT, End.MISSED, End.MISSED, End.MISSED]
    assert record.ran == 2 and np.isnan(record.latency_s[2:]).all()


def test_who_expires_once_bound_is_left_out_of_the_forward() -> None:
    record = simulate(WORLD, Lone, asked([0.0, 0.1, 5.0], slo_s=0.5), 0)
    assert ends(record) == [End.MISSED] * 3
    assert record.ran == 2


def test_a_full_queue_refuses() -> None:
    world = World(RUNGS, 2, max_items=2, disturbance=CALM)
    record = simulate(world, Lone, asked([0.0, 0.1, 0.2, 0.3, 0.4]), 0)  # one runs, one is bound, two wait
    assert ends(record) == [End.KEPT] * 4 + [End.REFUSED]


def test_who_is_displaced_is_refused() -> None:
    record = simulate(WORLD, Newest, asked([0.0, 0.1, 0.2, 0.3]), 0)
    assert ends(record) == [End.KEPT, End.KEPT, End.REFUSED, End.KEPT]


def test_who_is_never_served_has_missed_it() -> None:
    assert ends(simulate(WORLD, Idle, asked([0.0, 0.1]), 0)) == [End.MISSED] * 2


def test_an_answer_below_the_floor_keeps_no_promise() -> None:
    record = simulate(WORLD, policies(1.0)["static-light"], asked([0.0], min_quality=0.9), 0)
    assert ends(record) == [End.POOR]
    assert (record.attainment, record.utility, record.mean_quality) == (0.0, 0.0, 0.8)


def test_the_latency_model_follows_a_machine_slower_than_its_profile() -> None:
    models: list[Predictor] = []

    def maker(rungs: Sequence[Rung], latency: Predictor, max_batch: int) -> Policy:
        models.append(latency)
        return Fifo(rungs, latency, max_batch)

    world = World(RUNGS, 2, disturbance=Disturbance(3.0, 0.0, 0.0))
    simulate(world, maker, asked([5.0 * i for i in range(50)]), 0)
    assert models[0].predict(FULL, 1) == pytest.approx(3.0, rel=0.01)
    assert models[0].predict(LIGHT, 1) == pytest.approx(0.75, rel=0.1)


def test_two_choices_spread_better_than_one_replica_each_second() -> None:
    world = World(RUNGS, 2, replicas=8, disturbance=CALM)
    record = simulate(world, Lone, asked([i / 6 for i in range(400)]), 0)
    assert np.nanmax(record.latency_s) < 6.0  # at 3/4 of what eight can do


@pytest.mark.parametrize("name", list(policies(1.0)))
@pytest.mark.parametrize("replicas", [1, 3])
def test_every_request_ends_once_and_the_seed_decides_all(name: str, replicas: int) -> None:
    world = World(read_rungs("vit-t"), replicas=replicas)
    at = schedule("gamma:2", 3 * world.full_rate, 1.0, 0)
    kinds = [Kind(0.05, tenant="a"), Kind(0.3, 0.97, 1, "b"), Kind(INFINITE, share=0.2)]
    workload = Workload.draw(at, kinds, 0)
    one, other = (simulate(world, policies(0.05)[name], workload, 5) for _ in range(2))
    assert (one.end != End.NONE).all()
    assert np.array_equal(one.end, other.end) and np.array_equal(one.quality, other.quality)
    assert np.array_equal(one.latency_s, other.latency_s, equal_nan=True)
    in_time = (one.end == End.KEPT) | (one.end == End.POOR)
    assert (one.latency_s[in_time] <= (workload.deadline - workload.at)[in_time] + 1e-9).all()
    assert sum(one.share(end) for end in End) == pytest.approx(1.0)


def test_nobody_ends_twice() -> None:
    record = Record(asked([0.0]))
    job = Job(0, 0.0, 1.0, 1.0, 0, "")
    record.ended(job, End.KEPT)
    with pytest.raises(ValueError, match="twice"):
        record.ended(job, End.MISSED)


def test_the_command_prints_every_policy_and_refuses_in_a_sentence() -> None:
    page = run(_arguments(["--seconds", "0.5", "--policy", "slo", "slackfit"]))
    assert "slo" in page and "slackfit" in page and "static-full" not in page
    for wrong in (["--model", "nothing"], ["--shape", "square"], ["--seconds", "0.0001", "--load", "0.001"]):
        with pytest.raises(SetupError):
            run(_arguments([*wrong, "--seed", "1"]))
