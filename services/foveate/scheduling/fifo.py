"""The policy of a plain batching server: first come, first served, one plan for all, nobody refused."""

from collections.abc import Sequence
from itertools import islice

from foveate.core.model import Rung
from foveate.estimation.arrivals import ArrivalStats
from foveate.estimation.latency import Predictor
from foveate.scheduling.device_demand import NO_DEMAND, DeviceDemand
from foveate.scheduling.policy import BatchDecision, Refusal, W


class AdmitAll:
    """Lets everybody in."""

    def admit(
        self,
        entry: W,
        waiting: Sequence[W],
        now: float,
        free_at: float,
        ready_at: float = 0.0,
        others: DeviceDemand = NO_DEMAND,
    ) -> Refusal[W] | None:
        return None


class Fifo(AdmitAll):
    """What there is to compare with. Floors and deadlines are not looked at; a pinned plan is."""

    def __init__(self, rungs: Sequence[Rung], latency: Predictor, max_batch: int) -> None:
        self.plan, self.max_batch = rungs[-1].plan, max_batch

    def choose(
        self,
        waiting: Sequence[W],
        now: float,
        free_at: float,
        arrivals: ArrivalStats,
        others: DeviceDemand = NO_DEMAND,
    ) -> BatchDecision[W] | None:
        """The first, filled up with those behind it that run under the same plan."""
        if not waiting:
            return None
        plan = waiting[0].pinned or self.plan
        chosen = tuple(islice((e for e in waiting if (e.pinned or self.plan) == plan), self.max_batch))
        return BatchDecision(chosen, plan, len(chosen) == self.max_batch, "pinned")
