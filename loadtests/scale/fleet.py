"""Simulates an autoscaler that adds and removes replicas while requests arrive, on a virtual clock."""

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

RATE_WINDOW_S = 15.0
"""The arrival rate is the mean over this many seconds."""


@dataclass(frozen=True, slots=True)
class FleetSample:
    """The measurements that an autoscaler gets at one time."""

    at: float
    demand: float
    """Full-quality demand, in replicas that are busy all the time."""
    queue_length: float
    """Requests that wait or run, per replica."""
    utilisation: float
    """Share of the time since the last sample that the replicas were busy."""


Scaler = Callable[[Sequence[FleetSample], int], int]
"""Takes all samples so far and the number of replicas that serve or start; returns the desired number."""


@dataclass(frozen=True, slots=True)
class FleetState:
    """The fleet at one time."""

    at: float
    demand: float
    serving: int
    desired: int


@dataclass(frozen=True, slots=True)
class DayResult:
    """The result of one simulated day."""

    record: SimulationRecord
    states: Sequence[FleetState]
    replica_s: float
    """Seconds of all replicas together, start-up included: what the operator pays for."""


def full_quality_scaler(config: ScalingConfig) -> Scaler:
    """Foveate's scaling policy."""

    def scale(samples: Sequence[FleetSample], replicas: int) -> int:
        history = [DemandSample(sample.at, sample.demand) for sample in samples]
        return desired_replicas(history, replicas, config).replicas

    return scale


def ratio_scaler(
    metric: Callable[[FleetSample], float], target: float, config: ScalingConfig, tolerance: float = 0.1
) -> Scaler:
    """The algorithm of Kubernetes' HorizontalPodAutoscaler.

    The desired number is replicas times metric over target, and does not change while that ratio is within
    the tolerance of 1. It falls only to the maximum of the stabilisation window.
    """
    recommended: list[tuple[float, int]] = []

    def scale(samples: Sequence[FleetSample], replicas: int) -> int:
        now, ratio = samples[-1].at, metric(samples[-1]) / target
        desired = replicas if abs(ratio - 1) <= tolerance else math.ceil(replicas * ratio)
        desired = min(config.max_replicas, max(config.min_replicas, desired))
        recommended.append((now, desired))
        peak = max(count for at, count in recommended if at > now - config.downscale_delay_s)
        return max(desired, min(replicas, peak))

    return scale


class SimulatedFleet:
    """Replicas that start, serve and stop."""

    def __init__(self, world: World, policy: PolicyFactory, record: SimulationRecord, seed: int) -> None:
        self.world, self.policy, self.record, self.seed = world, policy, record, seed
        self.replicas: list[Replica] = []
        """All replicas, those that have stopped included."""
        self.busy_s: list[float] = []
        """Seconds that each replica has run batches."""
        self.serving: list[int] = []
        """Indices of the replicas that get requests."""
        self.starting: list[float] = []
        """The times at which further replicas start to serve."""
        self.paid_s = self._paid_until = 0.0
        self._draw = random.Random(seed).randrange  # noqa: S311 - simulation, no secrets

    def add(self) -> None:
        """Add a replica that serves at once."""
        world, number = self.world, len(self.replicas)
        machine = Machine(world.batch_table, world.disturbance, self.seed * 1_000_003 + number)
        self.replicas.append(
            Replica(world.rungs, self.policy, machine, self.record, world.max_batch, world.max_items)
        )
        self.busy_s.append(0.0)
        self.serving.append(number)

    def pay(self, now: float) -> None:
        """Add the replica seconds since the last payment."""
        self.paid_s += (now - self._paid_until) * (len(self.serving) + len(self.starting))
        self._paid_until = now

    def finish_starts(self, now: float) -> None:
        """Let the replicas serve whose start-up is over."""
        while self.starting and self.starting[0] <= now:
            self.pay(self.starting.pop(0))
            self.add()

    def resize(self, desired: int, now: float, replica_startup_s: float) -> None:
        """Start replicas, or stop the newest ones. A stopped replica finishes the requests that it has."""
        self.pay(now)
        while len(self.serving) + len(self.starting) < desired:
            self.starting.append(now + replica_startup_s)
        while len(self.serving) + len(self.starting) > desired and self.starting:
            self.starting.pop()
        while len(self.serving) > max(1, desired):
            self.serving.pop()

    def choose(self, now: float) -> int:
        """The replica with the shorter predicted wait of two random ones."""
        one, other = (self.serving[self._draw(len(self.serving))] for _ in range(2))
        waits = [self.replicas[index].predicted_wait(now) for index in (one, other)]
        return one if waits[0] <= waits[1] else other


class _DaySimulation:
    """The clock of one day: batches that end, arrivals, and the steps of the autoscaler."""

    def __init__(
        self, fleet: SimulatedFleet, scaler: Scaler, config: ScalingConfig, interval_s: float
    ) -> None:
        self.fleet, self.scaler, self.config, self.interval_s = fleet, scaler, config, interval_s
        world = fleet.world
        self.full_s = 1 / World(world.rungs, world.max_batch, disturbance=world.disturbance).full_rate
        """Seconds of one replica that one request at full quality takes."""
        self.states: list[FleetState] = []
        self._samples: list[FleetSample] = []
        self._arrivals: list[float] = []
        self._batch_ends: list[tuple[float, int]] = []
        self._busy_before, self._next_step = 0.0, interval_s

    def run(self, workload: Workload) -> None:
        """Serve all requests of the workload."""
        class_indices = workload.class_index.tolist()
        for number, at in enumerate(workload.at.tolist()):
            while self._next_step <= at:
                self._step(self._next_step)
                self._next_step += self.interval_s
            self.fleet.finish_starts(at)
            self._finish_batches(at)
            self._arrivals.append(at)
            index = self.fleet.choose(at)
            replica = self.fleet.replicas[index]
            request = replica.request(number, at, workload.classes[class_indices[number]])
            end = replica.arrive(request, at)
            self._start_batch(index, at, end)
        self._finish_batches(math.inf)
        for replica in self.fleet.replicas:
            replica.close()
        self.fleet.pay(float(workload.at[-1]))

    def _start_batch(self, index: int, now: float, end: float | None) -> None:
        """Note the end of a batch that a replica has started, if it has started one."""
        if end is not None:
            self.fleet.busy_s[index] += end - now
            heapq.heappush(self._batch_ends, (end, index))

    def _finish_batches(self, until: float) -> None:
        while self._batch_ends and self._batch_ends[0][0] <= until:
            now, index = heapq.heappop(self._batch_ends)
            self._start_batch(index, now, self.fleet.replicas[index].finish(now))

    def _step(self, now: float) -> None:
        """One step of the autoscaler."""
        fleet = self.fleet
        self._finish_batches(now)
        fleet.finish_starts(now)
        sample = self._sample(now)
        self._samples.append(sample)
        serving = len(fleet.serving)
        desired = self.scaler(self._samples, serving + len(fleet.starting))
        fleet.resize(desired, now, self.config.replica_startup_s)
        self.states.append(FleetState(now, sample.demand, serving, desired))

    def _sample(self, now: float) -> FleetSample:
        fleet = self.fleet
        serving, busy_s = len(fleet.serving), sum(fleet.busy_s)
        self._arrivals = [at for at in self._arrivals if at > now - RATE_WINDOW_S]
        demand = len(self._arrivals) * self.full_s / min(RATE_WINDOW_S, now)
        held = sum(fleet.replicas[index].held for index in fleet.serving)
        utilisation = (busy_s - self._busy_before) / (self.interval_s * serving)
        self._busy_before = busy_s
        return FleetSample(now, demand, held / serving, utilisation)


def simulate_day(
    world: World,
    policy: PolicyFactory,
    workload: Workload,
    scaler: Scaler,
    config: ScalingConfig,
    interval_s: float,
    seed: int,
) -> DayResult:
    """Serve a workload with the replicas that the scaler asks for at each interval."""
    record = SimulationRecord(workload)
    fleet = SimulatedFleet(world, policy, record, seed)
    for _ in range(max(1, config.min_replicas)):
        fleet.add()
    simulation = _DaySimulation(fleet, scaler, config, interval_s)
    simulation.run(workload)
    return DayResult(record, simulation.states, fleet.paid_s)
