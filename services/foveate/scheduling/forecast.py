"""Predicts when the queued requests complete if the whole queue is served at one rung."""

import math
from dataclasses import dataclass, replace

import numpy as np

from foveate.estimation.arrivals import ArrivalStats
from foveate.scheduling.device_demand import DeviceDemand, Floats
from foveate.scheduling.queue_snapshot import BatchCosts, Mask, QueueSnapshot

SHARED_BATCH_SHARE = 0.25
"""Share of the time that requests to other models allow which one batch may take. A batch of a single request
may take more."""
HORIZON_S = 0.25
"""Longest time over which the growth of the queue is extrapolated. A longer burst is noticed in time."""
MAX_SHARED_UTILIZATION = 0.8
"""Share of a device's time that the models which share it may need together. Arrivals of each model are
uneven, and batches are smaller where those of other models run between them."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """The inputs of one scheduling decision. All times are seconds after the start of the next batch."""

    queue: QueueSnapshot
    costs: BatchCosts
    other_demand: DeviceDemand
    """Of the other models of the device, with times relative to the start of the next batch."""
    safety_factor: float
    """Factor on predicted seconds."""
    full_rung: int
    """Index of the last rung."""
    max_batch_s: float
    """Longest batch that leaves the other models their time."""

    @classmethod
    def of(
        cls,
        queue: QueueSnapshot,
        costs: BatchCosts,
        other_demand: DeviceDemand,
        safety_factor: float,
        full_rung: int,
    ) -> "Forecast":
        """The forecast for a queue. A batch may take as long as no request to another model becomes late by
        it; requests that would be late anyway, on the cheapest plans, do not count."""
        left = other_demand.deadline - safety_factor * other_demand.min_s.cumsum()
        max_batch_s = float(
            min(SHARED_BATCH_SHARE * other_demand.allowed_s, left[left >= 0].min(initial=math.inf))
        )
        return cls(queue, costs, other_demand, safety_factor, full_rung, max_batch_s)

    def select(self, mask: Mask) -> "Forecast":
        """The same for the requests of the queue for which the mask (N,) is True."""
        return replace(self, queue=self.queue.select(mask))

    def cost_ratio(self, rung: int) -> float:
        """Cost of a request at this rung over its cost at full."""
        return float(self.costs.request_s[rung] / self.costs.request_s[self.full_rung])

    def completion_s(self, rung: int) -> tuple[Floats, Floats]:
        """When each of the N requests of the queue completes, and each of the M requests to other models.

        All requests are served in the order of their virtual deadlines and degraded alike. The first batch
        is as large as its deadlines allow, the others have their efficient size.
        """
        queue, costs, other_demand = self.queue, self.costs, self.other_demand
        plans, count = queue.plan_at(rung), len(queue.slack_s)
        head = plans[0]
        first = self.batch_size(np.minimum(queue.slack_s, self.max_batch_s), head)
        size = int(costs.efficient_size[head])
        position = np.arange(count) - first
        batch = np.where(position < 0, 0, position // size + 1)
        last = np.minimum(first + batch * size, count) - 1
        own: Floats = costs.item_s[plans].cumsum()[last] + costs.fixed_s[head] * (batch + 1)
        if not len(other_demand.virtual_deadline):
            return own, other_demand.virtual_deadline
        others = other_demand.request_s(self.cost_ratio(rung)).cumsum()
        batch_start = np.where(position < 0, 0, first + (batch - 1) * size)
        order = queue.virtual_deadline_s[batch_start]
        # The first batch runs now, before all requests to other models.
        before = np.where(batch, np.searchsorted(other_demand.virtual_deadline, order), 0)
        behind = np.maximum(1, np.searchsorted(order, other_demand.virtual_deadline, "right"))
        return own + np.concatenate(([0.0], others))[before], others + own[behind - 1]

    def batch_size(self, slack_s: Floats, plan: int) -> int:
        """Size of the largest batch of the first requests that makes none of them late, at least 1.

        slack_s: (N,) seconds that each request has, in queue order; plan: an index into the plans.
        """
        tightest_s = np.minimum.accumulate(slack_s[: self.costs.efficient_size[plan]])
        sizes = np.arange(1, len(tightest_s) + 1)
        batch_s = self.costs.fixed_s[plan] + self.costs.item_s[plan] * sizes
        fits = self.safety_factor * batch_s <= tightest_s
        return max(1, len(fits) if fits.all() else int(np.argmin(fits)))

    def count_on_time(self) -> int:
        """Number of requests of the queue that meet their deadlines on the cheapest plans they accept."""
        done, _ = self.completion_s(0)
        return int((done + (self.safety_factor - 1) * done[0] <= self.queue.slack_s).sum())

    def delays_others(self, others_done: Floats) -> bool:
        """True if a request to another model misses its deadline that could meet it on its cheapest plan.

        others_done: (M,) as returned by `completion_s`.
        """
        demand = self.other_demand
        late = self.safety_factor * others_done > demand.deadline
        possible = self.safety_factor * demand.min_s.cumsum() <= demand.deadline
        return bool((late & possible).any())

    def keeps_up(self, rung: int, delay_s: float, arrivals: ArrivalStats, target_utilization: float) -> bool:
        """Whether the queue stays within its share of the time allowed at the recent arrival rate.

        delay_s: seconds until the next batch starts; target_utilization: the share.
        """
        request_s = self.costs.request_s[self.queue.plan_at(rung)]
        mean_s, cost_ratio, demand = float(request_s.mean()), self.cost_ratio(rung), self.other_demand
        before = demand.virtual_deadline < arrivals.allowed_s
        others_s = float(demand.request_s(cost_ratio)[before].sum())
        backlog_s = delay_s + len(request_s) * mean_s + others_s
        return keeps_up(arrivals, mean_s, backlog_s, target_utilization, demand, cost_ratio)


def keeps_up(
    arrivals: ArrivalStats,
    request_s: float,
    backlog_s: float,
    target_utilization: float,
    other_demand: DeviceDemand,
    cost_ratio: float = 1.0,
) -> bool:
    """Whether a backlog stays within its share of the time allowed while requests arrive at the recent rate.

    request_s: device seconds of a request; backlog_s: of the requests that run and wait; target_utilization:
    the share; cost_ratio: of the requests to other models, see `Forecast.cost_ratio`.
    """
    utilization = arrivals.rate * request_s + other_demand.share(cost_ratio)
    if other_demand.active and utilization > MAX_SHARED_UTILIZATION:
        return False
    if math.isinf(arrivals.allowed_s):
        return True
    growth_s = min(arrivals.allowed_s, HORIZON_S) * (utilization - 1)
    expected_s = backlog_s + arrivals.preparing * request_s + growth_s
    return expected_s <= target_utilization * arrivals.allowed_s
