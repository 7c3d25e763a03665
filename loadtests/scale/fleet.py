"""Replicas that come and go while requests come: many simulated engines and an autoscaler."""

import heapq
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from foveate.autoscaler.policy import DemandSample, ScalingConfig, desired_replicas
from foveate.scheduling.policy import PolicyFactory
from loadtests.simulate.machine import Machine
from loadtests.simulate.record import SimulationRecord
from loadtests.simulate.replica import Replica
from loadtests.simulate.run import World
from loadtests.simulate.workload import Workload

WINDOW_S = 15.0
"""Rates are taken over so long."""


@dataclass(frozen=True, slots=True)
class Gauge:
    """What an autoscaler is shown at one time."""

    at: float
    demand: float
    """Full-quality demand, in replicas that are busy all the time."""
    waiting: float
    """Requests that wait or run, a replica."""
    busy: float
    """Share of their time that the replicas were busy since the last look."""


Scaler = Callable[[Sequence[Gauge], int], int]
"""Takes what was shown so far and the replicas there are or will be; gives how many there should be."""


@dataclass(frozen=True, slots=True)
class Moment:
    """The fleet at one time."""

    at: float
    demand: float
    serving: int
    wanted: int


@dataclass(frozen=True, slots=True)
class Day:
    """What a run came to."""

    record: SimulationRecord
    moments: Sequence[Moment]
    replica_s: float
    """Seconds that replicas were there, those that were starting among them: what is paid for."""


def full_quality(rules: ScalingConfig) -> Scaler:
    """Ours."""

    def scale(shown: Sequence[Gauge], replicas: int) -> int:
        return desired_replicas([DemandSample(one.at, one.demand) for one in shown], replicas, rules).replicas

    return scale


def by_ratio(
    of: Callable[[Gauge], float], target: float, rules: ScalingConfig, tolerance: float = 0.1
) -> Scaler:
    """As Kubernetes' HorizontalPodAutoscaler: replicas times metric over target, unless that is within the
    tolerance of 1; down to no less than what was wanted within the stabilisation window."""
    wanted: list[tuple[float, int]] = []

    def scale(shown: Sequence[Gauge], replicas: int) -> int:
        now, ratio = shown[-1].at, of(shown[-1]) / target
        found = replicas if abs(ratio - 1) <= tolerance else math.ceil(replicas * ratio)
        found = min(rules.max_replicas, max(rules.min_replicas, found))
        wanted.append((now, found))
        peak = max(count for at, count in wanted if at > now - rules.downscale_delay_s)
        return max(found, min(replicas, peak))

    return scale


class Fleet:
    """Replicas, some of which are starting, some of which are leaving."""

    def __init__(self, world: World, policy: PolicyFactory, record: SimulationRecord, seed: int) -> None:
        self.world, self.policy, self.record, self.seed = world, policy, record, seed
        self.serving: list[int] = []
        self.starting: list[float] = []
        self.every: list[Replica] = []
        self.paid_s = self._paid_until = 0.0
        self.busy_s: list[float] = []
        self._draw = random.Random(seed).randrange  # noqa: S311 - dice, not secrets

    def add(self) -> None:
        world, number = self.world, len(self.every)
        machine = Machine(world.batch_table, world.disturbance, self.seed * 1_000_003 + number)
        self.every.append(
            Replica(world.rungs, self.policy, machine, self.record, world.max_batch, world.max_items)
        )
        self.busy_s.append(0.0)
        self.serving.append(number)

    def pay(self, now: float) -> None:
        """For the time since it was last paid."""
        self.paid_s += (now - self._paid_until) * (len(self.serving) + len(self.starting))
        self._paid_until = now

    def begin(self, now: float) -> None:
        """Those that have started, serve."""
        while self.starting and self.starting[0] <= now:
            self.pay(self.starting.pop(0))
            self.add()

    def resize(self, wanted: int, now: float, replica_startup_s: float) -> None:
        """Ask for more, or let the youngest go: they take nothing new, and serve what they hold."""
        self.pay(now)
        while len(self.serving) + len(self.starting) < wanted:
            self.starting.append(now + replica_startup_s)
        while len(self.serving) + len(self.starting) > wanted and self.starting:
            self.starting.pop()
        while len(self.serving) > max(1, wanted):
            self.serving.pop()

    def choose(self, now: float) -> int:
        """The one of two, drawn at random, that is predicted to have a request wait less."""
        one, other = (self.serving[self._draw(len(self.serving))] for _ in range(2))
        waits = [self.every[index].predicted_wait(now) for index in (one, other)]
        return one if waits[0] <= waits[1] else other


def day(
    world: World,
    policy: PolicyFactory,
    workload: Workload,
    scaler: Scaler,
    rules: ScalingConfig,
    interval_s: float,
    seed: int,
) -> Day:
    """Serve a workload with replicas that the scaler asks for, every so many seconds."""
    record = SimulationRecord(workload)
    fleet = Fleet(world, policy, record, seed)
    for _ in range(max(1, rules.min_replicas)):
        fleet.add()
    each_s = 1 / World(world.rungs, world.max_batch, disturbance=world.disturbance).full_rate
    ends: list[tuple[float, int]] = []
    shown, moments, came = list[Gauge](), list[Moment](), list[float]()
    kinds, look = workload.class_index.tolist(), interval_s
    busy_before = 0.0

    def started(index: int, now: float, end: float | None) -> None:
        if end is not None:
            fleet.busy_s[index] += end - now
            heapq.heappush(ends, (end, index))

    def until(at: float) -> None:
        while ends and ends[0][0] <= at:
            now, index = heapq.heappop(ends)
            started(index, now, fleet.every[index].finish(now))

    for number, at in enumerate(workload.at.tolist()):
        while look <= at:
            until(look)
            fleet.begin(look)
            count, total = len(fleet.serving), sum(fleet.busy_s)
            came = [then for then in came if then > look - WINDOW_S]
            demand = len(came) * each_s / min(WINDOW_S, look)
            held = sum(fleet.every[index].held for index in fleet.serving)
            shown.append(Gauge(look, demand, held / count, (total - busy_before) / (interval_s * count)))
            busy_before = total
            there = count + len(fleet.starting)
            wanted = scaler(shown, there)
            fleet.resize(wanted, look, rules.replica_startup_s)
            moments.append(Moment(look, demand, count, wanted))
            look += interval_s
        fleet.begin(at)
        until(at)
        came.append(at)
        index = fleet.choose(at)
        replica = fleet.every[index]
        started(index, at, replica.arrive(replica.request(number, at, workload.classes[kinds[number]]), at))
    until(math.inf)
    for replica in fleet.every:
        replica.close()
    fleet.pay(float(workload.at[-1]))
    return Day(record, moments, fleet.paid_s)
