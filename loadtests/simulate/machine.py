"""What batches cost on a simulated device: its profile, scaled, with noise."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from foveate.core.errors import SetupError
from foveate.core.model import ModelCard, Rung
from foveate.core.plan import Plan
from foveate.core.profile import Profile
from foveate.scheduling.policy import pareto_rungs


def ladder(profile: Profile) -> tuple[Rung, ...]:
    """The rungs of a profile that an engine chooses from. Raises SetupError where one was never timed."""
    full = Plan(profile.model, 224)
    rungs = [
        Rung(Plan.parse(m.plan, full), m.gflops, m.tokens, m.quality, m.latency_s) for m in profile.ladder
    ]
    untimed = next((rung for rung in rungs if not rung.latency_s), None)
    if untimed is not None:
        raise SetupError(f"the profile of {profile.model} has no latencies for {untimed.plan}")
    return pareto_rungs(ModelCard(profile.model, "", full, (), 0, None, tuple(rungs)))


def seconds_by_size(latency_s: Mapping[int, float], max_batch: int) -> list[float]:
    """Seconds of a batch, by its size from 0 to max_batch: straight lines between measured sizes, and on
    from the last two; below the first and where there is but one, in proportion."""
    points = [(0, 0.0), *sorted(latency_s.items())]
    table = [0.0]
    for size in range(1, max_batch + 1):
        at = next((i for i, (n, _) in enumerate(points) if n >= size), len(points) - 1)
        (n0, s0), (n1, s1) = points[at - 1], points[at]
        table.append(s0 + (s1 - s0) * (size - n0) / (n1 - n0))
    return table


@dataclass(frozen=True, slots=True)
class Disturbance:
    """How a device differs from its profile."""

    slower: float = 1.0
    """Everything takes this many times as long as the profile says."""
    noise: float = 0.05
    """Standard deviation of the logarithm of a batch's seconds; their mean stays."""
    hiccups: float = 0.001
    """Share of batches that something else holds up."""
    hiccup: float = 3.0
    """How many times as long such a batch takes."""
    between_s: float = 0.0
    """Seconds between two forwards in which the device stands still."""


CALM = Disturbance(noise=0.0, hiccups=0.0)
Costs = Mapping[Plan, Sequence[float]]


def costs(rungs: Sequence[Rung], max_batch: int) -> Costs:
    """For each plan, seconds of a batch by its size."""
    return {rung.plan: seconds_by_size(rung.latency_s or {}, max_batch) for rung in rungs}


class Machine:
    """One device."""

    def __init__(self, costs: Costs, disturbance: Disturbance, seed: int) -> None:
        self._costs, self._by = costs, disturbance
        self._random = random.Random(seed)  # noqa: S311 - dice, not secrets

    @property
    def between_s(self) -> float:
        """Seconds until the next forward can begin."""
        return self._by.between_s

    def run(self, plan: Plan, size: int) -> float:
        """Seconds this batch takes."""
        by, seconds = self._by, self._costs[plan][size] * self._by.slower
        if by.noise:
            seconds *= self._random.lognormvariate(-(by.noise**2) / 2, by.noise)
        if by.hiccups and self._random.random() < by.hiccups:
            seconds *= by.hiccup
        return seconds
