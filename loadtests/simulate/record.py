"""The outcome of every request of a simulation, and the cost of the policy."""

from enum import IntEnum

import numpy as np

from loadtests.simulate.workload import SimulatedRequest, Workload


class End(IntEnum):
    """How a request ended."""

    NONE = 0
    """It has not ended yet."""
    MET = 1
    """Answered before its deadline, with at least its minimum quality."""
    LOW_QUALITY = 2
    """Answered before its deadline, on a plan below its minimum quality."""
    REFUSED = 3
    MISSED = 4
    """Its deadline passed after admission."""


class SimulationRecord:
    """Arrays over the N requests, and totals. Replicas write to it."""

    def __init__(self, workload: Workload) -> None:
        n = len(workload)
        self.workload = workload
        self.end = np.zeros(n, np.int8)
        """(N,) values of `End`."""
        self.quality = np.zeros(n)
        """(N,) quality of the plan, for requests that were answered in time."""
        self.latency_s = np.full(n, np.nan)
        """(N,) for requests that ran, in time or not."""
        self.batches = self.ran = 0
        """Number of forwards, and of requests in them."""
        self.decisions = 0
        self.deciding_s = 0.0
        """Wall time of all decisions of the policy."""
        self.wall_s = 0.0
        """Wall time of the simulation."""

    def set_end(self, request: SimulatedRequest, end: End) -> None:
        """Set the outcome of a request. Raises ValueError if it has one already."""
        if self.end[request.number]:
            raise ValueError(f"request {request.number} ends twice")
        self.end[request.number] = end

    def set_answered(self, request: SimulatedRequest, now: float, quality: float) -> None:
        """Set the outcome of a request whose batch ends now. Raises ValueError if it has one already."""
        self.latency_s[request.number] = now - request.at
        if now > request.deadline:
            return self.set_end(request, End.MISSED)
        self.quality[request.number] = quality
        min_quality = self.workload.classes[self.workload.class_index[request.number]].min_quality
        return self.set_end(request, End.MET if quality >= min(min_quality, 1.0) else End.LOW_QUALITY)

    def share(self, end: End) -> float:
        """Share of all requests that ended like this."""
        return float((self.end == end).mean())

    @property
    def attainment(self) -> float:
        """Share of all requests whose deadline and minimum quality were met."""
        return self.share(End.MET)

    @property
    def utility(self) -> float:
        """Sum of the qualities of the requests whose deadline and minimum quality were met."""
        return float(self.quality[self.end == End.MET].sum())

    @property
    def mean_quality(self) -> float:
        """Mean quality of the requests that were answered in time."""
        in_time = (self.end == End.MET) | (self.end == End.LOW_QUALITY)
        return float(self.quality[in_time].mean()) if in_time.any() else float("nan")

    @property
    def mean_batch(self) -> float:
        """Mean number of requests in a batch."""
        return self.ran / self.batches if self.batches else float("nan")

    @property
    def decision_us(self) -> float:
        """Mean microseconds of wall time of a decision."""
        return 1e6 * self.deciding_s / self.decisions if self.decisions else float("nan")
