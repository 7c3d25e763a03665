"""Policies to compare with, each as its authors or its users would have it."""

import math
from collections.abc import Mapping, Sequence

from foveate.core.model import Rung
from foveate.core.plan import Plan
from foveate.estimation.arrivals import ArrivalStats
from foveate.estimation.latency import Predictor
from foveate.scheduling.device_demand import NO_DEMAND, DeviceDemand
from foveate.scheduling.fifo import AdmitAll, Fifo
from foveate.scheduling.policy import BatchDecision, Policy, PolicyFactory, Refusal, W
from foveate.scheduling.slo_policy import SloPolicy

TARGET = 0.5
"""Share of the shortest promise that a batch may take, where batches are sized by a latency target: the
other half is for the wait behind the batch before."""
BUCKETS = 20
"""Into how many ranges SlackFit cuts latencies."""


def static_light(rungs: Sequence[Rung], latency: Predictor, max_batch: int) -> Policy:
    """First come, first served, everybody at the cheapest rung, floors or no floors."""
    return Fifo(rungs[:1], latency, max_batch)


class RejectOnly:
    """Full compute or none: who cannot be in time at full is refused, the others are served by deadline."""

    def __init__(self, rungs: Sequence[Rung], latency: Predictor, max_batch: int) -> None:
        self.plan, self.latency, self.max_batch = rungs[-1].plan, latency, max_batch

    def admit(
        self,
        entry: W,
        waiting: Sequence[W],
        now: float,
        free_at: float,
        ready_at: float = 0.0,
        others: DeviceDemand = NO_DEMAND,
    ) -> Refusal[W] | None:
        most = self.latency.efficient_batch_size(self.plan, self.max_batch)
        before = sum(other.virtual_deadline <= entry.virtual_deadline for other in waiting)
        wait_s = max(now, free_at) - now + before * self.latency.predict(self.plan, most) / most
        # Time for a batch, not just for one: who is let in at the last moment makes all batches small.
        own = self.latency.safety_factor * self.latency.predict(self.plan, min(most, before + 1))
        return None if now + wait_s + own <= entry.deadline else Refusal(entry, wait_s, own)

    def choose(
        self,
        waiting: Sequence[W],
        now: float,
        free_at: float,
        arrivals: ArrivalStats,
        others: DeviceDemand = NO_DEMAND,
    ) -> BatchDecision[W] | None:
        start, late = max(now, free_at), 0
        while late < len(waiting) and start + self.latency.predict(self.plan, 1) > waiting[late].deadline:
            late += 1
        refused, left = tuple(waiting[:late]), waiting[late : late + self.max_batch]
        size, tightest = min(1, len(left)), math.inf
        for entry in left:
            tightest = min(tightest, entry.deadline - start)
            if self.latency.safety_factor * self.latency.predict(self.plan, size) > tightest:
                break
            size += 1
        size = min(max(size - 1, 1), len(left))
        full = size == self.max_batch or size < len(left)
        return BatchDecision(tuple(left[:size]), self.plan, full, "full", refused)


class FixedTarget(AdmitAll):
    """First come, first served at full, in the largest batch that takes a*n + b <= target seconds: what
    servers with a latency target tune towards, and one of Clipper's two ways to size batches (Crankshaw et
    al., NSDI 2017, section 4.3; the other one is additive increase, multiplicative decrease)."""

    def __init__(self, rungs: Sequence[Rung], latency: Predictor, max_batch: int, target_s: float) -> None:
        self.plan, self.latency, self.max_batch = rungs[-1].plan, latency, max_batch
        self.target_s = target_s

    @property
    def size(self) -> int:
        """The largest batch within the target; 1 where none is."""
        sizes = range(self.max_batch, 0, -1)
        return next((n for n in sizes if self.latency.predict(self.plan, n) <= self.target_s), 1)

    def choose(
        self,
        waiting: Sequence[W],
        now: float,
        free_at: float,
        arrivals: ArrivalStats,
        others: DeviceDemand = NO_DEMAND,
    ) -> BatchDecision[W] | None:
        size = self.size
        return BatchDecision(tuple(waiting[:size]), self.plan, len(waiting) >= size) if waiting else None


class SlackFit(AdmitAll):
    """SuperServe's policy (Khare et al., NSDI 2025, section 4): plan and batch size together, from the
    slack of the most urgent request.

    All pairs (plan, size) fall into buckets of even width by their latency, and each bucket stands for
    the pair with the largest batch in it, of equal ones for the best plan. What runs is the pair of the
    highest bucket that the slack allows; the lowest where it allows none. Nobody is refused.
    Buckets are of the latencies of the profile: they are made offline.
    """

    def __init__(self, rungs: Sequence[Rung], latency: Predictor, max_batch: int) -> None:
        pairs = [
            (latency.predict(rung.plan, size), size, rung.plan)
            for rung in rungs
            for size in range(1, max_batch + 1)
        ]
        self.least = min(pair[0] for pair in pairs)
        self.width = (max(pair[0] for pair in pairs) - self.least) / BUCKETS
        buckets: dict[int, tuple[int, Plan]] = {}
        for seconds, size, plan in pairs:  # worse plans first
            at = self._bucket(seconds)
            if at not in buckets or size >= buckets[at][0]:
                buckets[at] = size, plan
        self.buckets = buckets

    def _bucket(self, seconds: float) -> int:
        """The bucket whose upper end is the first at or above so many seconds."""
        return math.ceil((seconds - self.least) / self.width - 1e-9) if self.width else 0

    def pair(self, slack_s: float) -> tuple[int, Plan]:
        """Largest batch and plan for so much slack."""
        allowed = math.floor((slack_s - self.least) / self.width + 1e-9) if self.width else 0
        return self.buckets[max((at for at in self.buckets if at <= allowed), default=min(self.buckets))]

    def choose(
        self,
        waiting: Sequence[W],
        now: float,
        free_at: float,
        arrivals: ArrivalStats,
        others: DeviceDemand = NO_DEMAND,
    ) -> BatchDecision[W] | None:
        if not waiting:
            return None
        slack = min(waiting[0].deadline - max(now, free_at), 1e9)
        size, plan = self.pair(slack)
        return BatchDecision(tuple(waiting[:size]), plan, len(waiting) >= size, "deadline")


def policies(shortest_slo_s: float) -> Mapping[str, PolicyFactory]:
    """All there are, by name."""

    def fixed_target(rungs: Sequence[Rung], latency: Predictor, max_batch: int) -> Policy:
        return FixedTarget(rungs, latency, max_batch, TARGET * shortest_slo_s)

    return {
        "slo": SloPolicy,
        "static-full": Fifo,
        "static-light": static_light,
        "reject-only": RejectOnly,
        "fixed-target": fixed_target,
        "slackfit": SlackFit,
    }
