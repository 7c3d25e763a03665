"""A simulated device: batches take the seconds of the profile, scaled and with noise."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from foveate.core.errors import SetupError
from foveate.core.model import ModelCard, Rung
from foveate.core.plan import Plan
from foveate.core.profile import Profile
from foveate.scheduling.policy import pareto_rungs


def ladder(profile: Profile) -> tuple[Rung, ...]:
    """The rungs of a profile that an engine chooses from. Raises SetupError if one has no latencies."""
    full = Plan(profile.model, 224)
    rungs = [
        Rung(Plan.parse(m.plan, full), m.gflops, m.tokens, m.quality, m.latency_s, m.chat)
        for m in profile.ladder
    ]
    untimed = next((rung for rung in rungs if not rung.latency_s), None)
    if untimed is not None:
        raise SetupError(
            f"the profile of {profile.model} has no latencies for {untimed.plan}; profile the model again"
        )
    return pareto_rungs(ModelCard(profile.model, "", full, (), 0, None, tuple(rungs)))


def seconds_by_size(latency_s: Mapping[int, float], max_batch: int) -> list[float]:
    """Seconds of a batch for each size from 0 to max_batch.

    Linear between the measured sizes and beyond the last two; proportional below the first size, and
    everywhere if only one size was measured.
    """
    return [0.0, *(seconds_of(latency_s, size) for size in range(1, max_batch + 1))]


def seconds_of(latency_s: Mapping[int, float], size: int) -> float:
    """Seconds of a batch of this size, at least 1, as in `seconds_by_size`."""
    points = [(0, 0.0), *sorted(latency_s.items())]
    at = next((i for i, (n, _) in enumerate(points) if n >= size), len(points) - 1)
    (n0, s0), (n1, s1) = points[at - 1], points[at]
    return s0 + (s1 - s0) * (size - n0) / (n1 - n0)


@dataclass(frozen=True, slots=True)
class Disturbance:
    """How a device differs from its profile."""

    slowdown: float = 1.0
    """Factor on all times of the profile."""
    noise: float = 0.05
    """Standard deviation of the logarithm of a batch's seconds; the mean is unchanged."""
    stall_rate: float = 0.001
    """Share of batches that stall."""
    stall_factor: float = 3.0
    """Factor on the seconds of a batch that stalls."""
    gap_s: float = 0.0
    """Idle seconds of the device between two forwards."""


NO_DISTURBANCE = Disturbance(noise=0.0, stall_rate=0.0)
BatchTable = Mapping[Plan, Sequence[float]]
"""Seconds of a batch by plan and size; index 0 is the size 0."""


def batch_table(rungs: Sequence[Rung], max_batch: int) -> BatchTable:
    """For each plan, the seconds of a batch by its size from 0 to max_batch."""
    return {rung.plan: seconds_by_size(rung.latency_s or {}, max_batch) for rung in rungs}


class Noise:
    """Draws how long something takes on a disturbed device."""

    def __init__(self, disturbance: Disturbance, seed: int) -> None:
        self.disturbance = disturbance
        self._random = random.Random(seed)  # noqa: S311 - not used for security

    def disturbed(self, seconds: float) -> float:
        """The seconds that a batch takes which has these in the profile."""
        disturbance = self.disturbance
        seconds *= disturbance.slowdown
        if disturbance.noise:
            seconds *= self._random.lognormvariate(-(disturbance.noise**2) / 2, disturbance.noise)
        if disturbance.stall_rate and self._random.random() < disturbance.stall_rate:
            seconds *= disturbance.stall_factor
        return seconds


class Machine:
    """One simulated device."""

    def __init__(self, table: BatchTable, disturbance: Disturbance, seed: int) -> None:
        self._table, self._noise = table, Noise(disturbance, seed)

    @property
    def gap_s(self) -> float:
        """Seconds between the end of a forward and the start of the next one."""
        return self._noise.disturbance.gap_s

    def run(self, plan: Plan, size: int) -> float:
        """Seconds that this batch takes; draws the noise."""
        return self._noise.disturbed(self._table[plan][size])
