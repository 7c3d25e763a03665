"""What became of every request of a simulation, and what the policy cost."""

from enum import IntEnum

import numpy as np

from loadtests.simulate.workload import Job, Workload


class End(IntEnum):
    """How a request ended."""

    NONE = 0
    KEPT = 1
    """Answered in time, as good as was asked or better."""
    POOR = 2
    """Answered in time, at a plan below what was asked."""
    REFUSED = 3
    MISSED = 4
    """Its deadline passed after it had been let in."""


class Record:
    """Arrays over requests, and totals; written by replicas."""

    def __init__(self, workload: Workload) -> None:
        n = len(workload)
        self.workload = workload
        self.end = np.zeros(n, np.int8)
        self.quality = np.zeros(n)
        """Of the plan, for those answered in time."""
        self.latency_s = np.full(n, np.nan)
        """For those that ran, in time or not."""
        self.batches = self.ran = 0
        """Forwards, and requests in them."""
        self.decisions = 0
        self.deciding_s = 0.0
        """Wall time the policy took for all of its answers."""
        self.wall_s = 0.0
        """Wall time of the whole simulation."""

    def ended(self, job: Job, end: End) -> None:
        """A request has its outcome. Raises ValueError if it had one."""
        if self.end[job.number]:
            raise ValueError(f"request {job.number} ends twice")
        self.end[job.number] = end

    def answered(self, job: Job, now: float, quality: float) -> None:
        """A request was in a batch that ran until now."""
        self.latency_s[job.number] = now - job.at
        if now > job.deadline:
            return self.ended(job, End.MISSED)
        self.quality[job.number] = quality
        asked = self.workload.kinds[self.workload.kind[job.number]].min_quality
        return self.ended(job, End.KEPT if quality >= min(asked, 1.0) else End.POOR)

    def share(self, end: End) -> float:
        """Of all requests, those that ended so."""
        return float((self.end == end).mean())

    @property
    def attainment(self) -> float:
        return self.share(End.KEPT)

    @property
    def utility(self) -> float:
        """Sum of the qualities of those whose promise was kept."""
        return float(self.quality[self.end == End.KEPT].sum())

    @property
    def mean_quality(self) -> float:
        """Of those answered in time."""
        in_time = (self.end == End.KEPT) | (self.end == End.POOR)
        return float(self.quality[in_time].mean()) if in_time.any() else float("nan")

    @property
    def mean_batch(self) -> float:
        return self.ran / self.batches if self.batches else float("nan")

    @property
    def decision_us(self) -> float:
        """Mean microseconds of the policy's answers."""
        return 1e6 * self.deciding_s / self.decisions if self.decisions else float("nan")
