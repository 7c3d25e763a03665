"""Baseline policies for comparison, each as published or as commonly configured."""

import math
from collections.abc import Mapping, Sequence

from foveate.core.model import Rung
from foveate.core.plan import Plan
from foveate.estimation.arrivals import ArrivalStats
from foveate.estimation.latency import Predictor
from foveate.scheduling.device_demand import NO_DEMAND, DeviceDemand
from foveate.scheduling.fifo import AdmitAll, Fifo
from foveate.scheduling.policy import BatchDecision, Policy, PolicyFactory, QueuedT, Refusal
from foveate.scheduling.slo_policy import SloPolicy

TARGET_SHARE = 0.5
"""Share of the shortest deadline that a batch may take, where batches are sized by a latency target. The
other half is for the wait behind the previous batch."""
BUCKETS = 20
"""Number of latency ranges of SlackFit."""


def static_light(rungs: Sequence[Rung], latency: Predictor, max_batch: int) -> Policy:
    """First in, first out, all requests at the cheapest rung, whatever their minimum quality."""
    return Fifo(rungs[:1], latency, max_batch)


class RejectOnly:
    """Full compute or none: refuses a request that would be late at full, serves the others by deadline."""

    def __init__(self, rungs: Sequence[Rung], latency: Predictor, max_batch: int) -> None:
        self.plan, self.latency, self.max_batch = rungs[-1].plan, latency, max_batch

    def admit(
        self,
        candidate: QueuedT,
        waiting: Sequence[QueuedT],
        now: float,
        free_at: float,
        ready_at: float = 0.0,
        other_demand: DeviceDemand = NO_DEMAND,
    ) -> Refusal[QueuedT] | None:
        """Refuse the candidate if it would be late at full."""
        size = self.latency.efficient_batch_size(self.plan, self.max_batch)
        before = sum(entry.virtual_deadline <= candidate.virtual_deadline for entry in waiting)
        wait_s = max(now, free_at) - now + before * self.latency.predict(self.plan, size) / size
        # Reserve the time of a batch, not of one request: requests admitted at the last moment make all
        # batches small.
        batch_s = self.latency.safety_factor * self.latency.predict(self.plan, min(size, before + 1))
        return None if now + wait_s + batch_s <= candidate.deadline else Refusal(candidate, wait_s, batch_s)

    def choose(
        self,
        waiting: Sequence[QueuedT],
        now: float,
        free_at: float,
        arrivals: ArrivalStats,
        other_demand: DeviceDemand = NO_DEMAND,
    ) -> BatchDecision[QueuedT] | None:
        """The largest batch at full that makes none of its requests late; refuses the late ones."""
        start, late = max(now, free_at), 0
        while late < len(waiting) and start + self.latency.predict(self.plan, 1) > waiting[late].deadline:
            late += 1
        refused, rest = tuple(waiting[:late]), waiting[late : late + self.max_batch]
        size, slack_s = min(1, len(rest)), math.inf
        for entry in rest:
            slack_s = min(slack_s, entry.deadline - start)
            if self.latency.safety_factor * self.latency.predict(self.plan, size) > slack_s:
                break
            size += 1
        size = min(max(size - 1, 1), len(rest))
        full = size == self.max_batch or size < len(rest)
        return BatchDecision(tuple(rest[:size]), self.plan, full, "full", refused)


class FixedTarget(AdmitAll):
    """First in, first out at full, in the largest batch that takes a*n + b <= target seconds.

    This is what servers with a latency target tune towards, and one of Clipper's two ways to size batches
    (Crankshaw et al., NSDI 2017, section 4.3; the other one is additive increase, multiplicative decrease).
    """

    def __init__(self, rungs: Sequence[Rung], latency: Predictor, max_batch: int, target_s: float) -> None:
        self.plan, self.latency, self.max_batch = rungs[-1].plan, latency, max_batch
        self.target_s = target_s

    @property
    def size(self) -> int:
        """The largest batch within the target; 1 if there is none."""
        sizes = range(self.max_batch, 0, -1)
        return next((n for n in sizes if self.latency.predict(self.plan, n) <= self.target_s), 1)

    def choose(
        self,
        waiting: Sequence[QueuedT],
        now: float,
        free_at: float,
        arrivals: ArrivalStats,
        other_demand: DeviceDemand = NO_DEMAND,
    ) -> BatchDecision[QueuedT] | None:
        """The first requests of the queue, as many as fit into the target."""
        size = self.size
        return BatchDecision(tuple(waiting[:size]), self.plan, len(waiting) >= size) if waiting else None


class SlackFit(AdmitAll):
    """SuperServe's policy (Khare et al., NSDI 2025, section 4): plan and batch size together, from the slack
    of the most urgent request.

    All pairs (plan, size) fall into buckets of even width by their latency. Each bucket stands for the pair
    with the largest batch in it, among equal ones for the best plan. The pair of the highest bucket that the
    slack allows runs; the lowest one if it allows none. No request is refused. The buckets are made offline,
    from the latencies of the profile.
    """

    def __init__(self, rungs: Sequence[Rung], latency: Predictor, max_batch: int) -> None:
        pairs = [
            (latency.predict(rung.plan, size), size, rung.plan)
            for rung in rungs
            for size in range(1, max_batch + 1)
        ]
        self.min_s = min(pair[0] for pair in pairs)
        self.width_s = (max(pair[0] for pair in pairs) - self.min_s) / BUCKETS
        buckets: dict[int, tuple[int, Plan]] = {}
        for seconds, size, plan in pairs:  # worse plans first
            at = self._bucket(seconds)
            if at not in buckets or size >= buckets[at][0]:
                buckets[at] = size, plan
        self.buckets = buckets

    def _bucket(self, seconds: float) -> int:
        """The first bucket whose upper end is at or above this latency."""
        return math.ceil((seconds - self.min_s) / self.width_s - 1e-9) if self.width_s else 0

    def pair(self, slack_s: float) -> tuple[int, Plan]:
        """Largest batch and its plan for this slack."""
        allowed = math.floor((slack_s - self.min_s) / self.width_s + 1e-9) if self.width_s else 0
        return self.buckets[max((at for at in self.buckets if at <= allowed), default=min(self.buckets))]

    def choose(
        self,
        waiting: Sequence[QueuedT],
        now: float,
        free_at: float,
        arrivals: ArrivalStats,
        other_demand: DeviceDemand = NO_DEMAND,
    ) -> BatchDecision[QueuedT] | None:
        """The first requests of the queue, in the pair that their slack allows."""
        if not waiting:
            return None
        slack_s = min(waiting[0].deadline - max(now, free_at), 1e9)
        size, plan = self.pair(slack_s)
        return BatchDecision(tuple(waiting[:size]), plan, len(waiting) >= size, "deadline")


def policies(shortest_slo_s: float) -> Mapping[str, PolicyFactory]:
    """The SLO policy and all baselines, by name. shortest_slo_s: the shortest deadline of the workload."""

    def fixed_target(rungs: Sequence[Rung], latency: Predictor, max_batch: int) -> Policy:
        return FixedTarget(rungs, latency, max_batch, TARGET_SHARE * shortest_slo_s)

    return {
        "slo": SloPolicy,
        "static-full": Fifo,
        "static-light": static_light,
        "reject-only": RejectOnly,
        "fixed-target": fixed_target,
        "slackfit": SlackFit,
    }
