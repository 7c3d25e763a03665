"""The policy of a plain batching server: first in, first out, one plan for all requests, no refusals."""

from collections.abc import Sequence
from itertools import islice

from foveate.core.model import Rung
from foveate.estimation.arrivals import ArrivalStats
from foveate.estimation.latency import Predictor
from foveate.scheduling.device_demand import NO_DEMAND, DeviceDemand
from foveate.scheduling.policy import BatchDecision, QueuedT, Refusal


class AdmitAll:
    """The admission half of a policy that refuses no request."""

    def admit(
        self,
        candidate: QueuedT,
        waiting: Sequence[QueuedT],
        now: float,
        free_at: float,
        ready_at: float = 0.0,
        other_demand: DeviceDemand = NO_DEMAND,
    ) -> Refusal[QueuedT] | None:
        """Admits the candidate."""
        return None


class Fifo(AdmitAll):
    """The baseline of comparisons. Ignores minimum qualities and deadlines; runs a pinned plan."""

    def __init__(self, rungs: Sequence[Rung], latency: Predictor, max_batch: int) -> None:
        """rungs: the last one is the plan of all requests."""
        self.plan, self.max_batch = rungs[-1].plan, max_batch

    def choose(
        self,
        waiting: Sequence[QueuedT],
        now: float,
        free_at: float,
        arrivals: ArrivalStats,
        other_demand: DeviceDemand = NO_DEMAND,
    ) -> BatchDecision[QueuedT] | None:
        """The first request, and the requests behind it that run under the same plan."""
        if not waiting:
            return None
        plan = waiting[0].pinned or self.plan
        same_plan = (entry for entry in waiting if (entry.pinned or self.plan) == plan)
        batch = tuple(islice(same_plan, self.max_batch))
        return BatchDecision(batch, plan, len(batch) == self.max_batch, "pinned")
