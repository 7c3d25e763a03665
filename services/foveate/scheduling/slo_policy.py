"""The SLO policy: the best quality at which all requests meet their deadlines, and early refusal otherwise.

The whole queue is served at one rung: the best one at which every queued request meets its deadline and the
expected requests will too. Quality per second falls with every rung, so that an even distribution of compute
gives more quality in total than an uneven one; and no request is degraded more than the others.
"""

import math
from collections.abc import Iterator, Sequence
from heapq import merge
from operator import itemgetter

import numpy as np

from foveate.core.batching import BATCH_SIZES
from foveate.core.model import Rung
from foveate.core.outcome import Reason
from foveate.core.plan import Plan
from foveate.estimation.arrivals import ArrivalStats
from foveate.estimation.latency import Predictor
from foveate.scheduling.device_demand import NO_DEMAND, DeviceDemand
from foveate.scheduling.forecast import Forecast
from foveate.scheduling.policy import (
    BatchDecision,
    QueuedRequest,
    QueuedT,
    Refusal,
    last_of_largest_tenant,
    priority_boost_s,
)
from foveate.scheduling.queue_snapshot import BatchCosts, Indices, Mask, QueueSnapshot

TARGET_UTILIZATION = 0.6
"""Share of the time that requests allow which the expected queue may fill."""

DEADLINE: Reason = "deadline"


class SloPolicy:
    """Serves the queue at the best rung that keeps all deadlines. Its only state is derived from the latency
    model, which the engine refits."""

    def __init__(
        self,
        rungs: Sequence[Rung],
        latency: Predictor,
        max_batch: int,
        target_utilization: float = TARGET_UTILIZATION,
    ) -> None:
        """rungs: cheapest first, the last is full; each has a higher quality than those before it."""
        self.plans = tuple(rung.plan for rung in rungs)
        self.latency, self.max_batch, self.target_utilization = latency, max_batch, target_utilization
        self._refresh()

    def _refresh(self) -> None:
        """Compute again what depends on the latency model alone."""
        self._costs_version = self.latency.version
        self._rung_costs = BatchCosts.predict(self.plans, self.latency, self.max_batch)
        # Full is warm before the first request, so each rung that is not warm has a better one that is.
        last = len(self.plans) - 1
        self._warm = [i for i, plan in enumerate(self.plans) if i == last or self.latency.is_warm(plan)]
        self._served_by = [next(i for i in self._warm if i >= rung) for rung in range(last + 1)]

    def admit(
        self,
        candidate: QueuedT,
        waiting: Sequence[QueuedT],
        now: float,
        free_at: float,
        ready_at: float = 0.0,
        other_demand: DeviceDemand = NO_DEMAND,
    ) -> Refusal[QueuedT] | None:
        """Admit the candidate if it meets its deadline and makes no other request late, all on the cheapest
        plans; else refuse a request of a tenant that floods the queue or of lower priority, or the candidate.
        """
        if math.isinf(candidate.deadline):
            return None
        start = max(now, free_at)
        fits, work_s, tightest = self._fits(candidate, waiting, start, ready_at, other_demand)
        if fits:
            return None
        service_s = self._service_s(candidate)
        if max(start, ready_at) + service_s <= candidate.deadline:  # else no other refusal would help it
            boost = priority_boost_s(candidate)
            lower = tightest if tightest is not None and priority_boost_s(tightest) < boost else None
            for victim in (last_of_largest_tenant(candidate, waiting), lower):
                rest = [entry for entry in waiting if entry is not victim]
                if victim is not None and self._fits(candidate, rest, start, ready_at, other_demand)[0]:
                    return Refusal(victim, start - now + work_s, service_s)
        return Refusal(candidate, start - now + work_s, service_s)

    def _fits(
        self,
        candidate: QueuedT,
        waiting: Sequence[QueuedT],
        start: float,
        ready_at: float,
        other_demand: DeviceDemand,
    ) -> tuple[bool, float, QueuedT | None]:
        """Whether the candidate meets its deadline and makes no request late, all on the cheapest plans.

        Returns also the seconds of queued work, and the request behind the candidate with the least time to
        spare, or None if that request belongs to another model.
        """
        service_s = self._service_s(candidate)
        before_s = behind_s = 0.0
        tightest: QueuedT | None = None
        spare_s = math.inf
        queued = merge(self._min_costs(waiting), _other_min_costs(other_demand), key=itemgetter(0))
        for virtual_deadline, deadline, cost_s, entry in queued:
            left_s = deadline - start - before_s - behind_s - cost_s
            if left_s < -1e-9:
                continue  # late with or without the candidate: it will be refused
            if virtual_deadline <= candidate.virtual_deadline:
                before_s += cost_s
            else:
                behind_s += cost_s
                if left_s < spare_s:
                    tightest, spare_s = entry, left_s
        done = max(start + before_s, ready_at) + service_s
        fits = done <= candidate.deadline and spare_s >= service_s
        return fits, before_s + behind_s, tightest

    def _min_costs(self, waiting: Sequence[QueuedT]) -> Iterator[tuple[float, float, float, QueuedT]]:
        """Virtual deadline, deadline and seconds on the cheapest accepted plan, of each request."""
        request_s: list[float] = self._costs(self.plans).request_s.tolist()
        rung_s = [request_s[rung] for rung in self._served_by]
        pinned_s: dict[Plan, float] = {}
        for entry in waiting:
            plan = entry.pinned
            if plan is None:
                cost_s = rung_s[entry.min_rung]
            elif plan in pinned_s:
                cost_s = pinned_s[plan]
            else:
                cost_s = pinned_s[plan] = self._request_s(plan)
            yield entry.virtual_deadline, entry.deadline, cost_s, entry

    def _request_s(self, plan: Plan) -> float:
        """Seconds of one request in a batch of efficient size."""
        size = self.latency.efficient_batch_size(plan, self.max_batch)
        return self.latency.predict(plan, size) / size

    def _service_s(self, entry: QueuedT) -> float:
        """Seconds of a request alone on the cheapest plan that it accepts, with the safety factor."""
        return self.latency.safety_factor * self.latency.predict(self._plan(entry, 0), 1)

    def choose(
        self,
        waiting: Sequence[QueuedT],
        now: float,
        free_at: float,
        arrivals: ArrivalStats,
        other_demand: DeviceDemand = NO_DEMAND,
    ) -> BatchDecision[QueuedT] | None:
        """The first requests of the queue, at the best rung at which no request becomes late."""
        if not waiting:
            return None
        start = max(now, free_at)
        self._costs(self.plans)
        queue = QueueSnapshot.from_queue(waiting, start, self.plans, self._served_by)
        costs = self._costs(queue.plans)
        forecast = Forecast.of(
            queue, costs, other_demand.relative_to(start), self.latency.safety_factor, len(self.plans) - 1
        )
        rung, reason = 0, DEADLINE
        # A request that would be late even alone on its cheapest plan must not cost the others their time.
        lost = (costs.fixed_s + costs.item_s)[queue.plan_at(0)] > queue.slack_s
        if not lost.all():
            best, reason = self._best_rung(forecast.select(~lost), start - now, arrivals)
            if best is None:
                lost[self._shed(forecast, ~lost)] = True
            else:
                rung = best
        refused = tuple(waiting[row] for row in np.flatnonzero(lost).tolist())
        kept = np.flatnonzero(~lost).tolist()
        if not kept:
            return BatchDecision((), self.plans[-1], False, refused=refused)
        head = waiting[kept[0]]
        rows, full = self._batch(forecast.select(~lost), rung)
        entries = tuple(waiting[kept[row]] for row in rows)
        return BatchDecision(
            entries, self._plan(head, rung), full, "pinned" if head.pinned else reason, refused
        )

    def _plan(self, entry: QueuedRequest, rung: int) -> Plan:
        """The plan that a request gets when the queue is served at this rung."""
        return entry.pinned or self.plans[self._served_by[max(rung, entry.min_rung)]]

    def _costs(self, plans: tuple[Plan, ...]) -> BatchCosts:
        """The costs of batches now. Those of the rungs are computed again only if they may have changed."""
        if plans != self.plans:
            return BatchCosts.predict(plans, self.latency, self.max_batch)
        if self._costs_version != self.latency.version:
            self._refresh()
        return self._rung_costs

    def _shed(self, forecast: Forecast, kept: Mask) -> Indices:
        """The rows of the queue to refuse if not all kept requests can be served in time, so that most are.

        A request that is served at the last moment is served alone, at the cost of a whole batch. Therefore
        the first requests of the queue are refused, those with a priority boost last, and never a request
        without a deadline.
        """
        queue = forecast.queue
        rows = np.flatnonzero(kept & np.isfinite(queue.slack_s))
        rows = rows[np.argsort(queue.priority_boost_s[rows], kind="stable")]
        counts = [0, *(size for size in BATCH_SIZES if size <= len(rows))]

        def on_time(count: int) -> int:
            left = kept.copy()
            left[rows[:count]] = False
            return forecast.select(left).count_on_time() if left.any() else 0

        return rows[: max(counts, key=on_time)]

    def _best_rung(
        self, forecast: Forecast, delay_s: float, arrivals: ArrivalStats
    ) -> tuple[int | None, Reason]:
        """The best rung at which all queued and expected requests meet their deadlines, or None; and why.

        Requests to other models are assumed to be degraded as much.
        """
        reason: Reason = "full"
        queue, factor = forecast.queue, forecast.safety_factor
        for rung in reversed(self._warm):
            done, others_done = forecast.completion_s(rung)
            sustainable = not forecast.delays_others(others_done) and forecast.keeps_up(
                rung, delay_s, arrivals, self.target_utilization
            )
            if rung != self._warm[0] and not sustainable:
                reason = "load"
            elif (factor * done > queue.slack_s).any():
                reason = DEADLINE
            else:
                return rung, reason
        return None, reason

    def _batch(self, forecast: Forecast, rung: int) -> tuple[list[int], bool]:
        """The rows of the next batch, and whether it is full.

        The batch is the head and the requests behind it that get the same plan. It is as large as makes
        items cheaper, leaves other models their time, and makes neither its own requests late nor the next
        request of another plan, on the cheapest plan that it accepts.
        """
        queue, costs = forecast.queue, forecast.costs
        plans = queue.plan_at(rung)
        head = plans[0]
        same_plan, max_size = plans == head, int(costs.efficient_size[head])
        rows = np.flatnonzero(same_plan)[:max_size]
        slack_s = np.minimum(queue.slack_s[rows], forecast.max_batch_s)
        if not same_plan.all():
            other_plans = queue.plan_at(0)[~same_plan]
            alone_s = forecast.safety_factor * (costs.fixed_s[other_plans] + costs.item_s[other_plans])
            slack_s = np.minimum(slack_s, (queue.slack_s[~same_plan] - alone_s).min())
        fitting = forecast.batch_size(slack_s, head)
        size = max(size for size in BATCH_SIZES if size <= fitting)
        return rows[:size].tolist(), fitting == max_size or fitting < len(rows)


def _other_min_costs(other_demand: DeviceDemand) -> Iterator[tuple[float, float, float, None]]:
    """As `SloPolicy._min_costs`, of the requests to other models."""
    rows = zip(
        other_demand.virtual_deadline.tolist(),
        other_demand.deadline.tolist(),
        other_demand.min_s.tolist(),
        strict=True,
    )
    return ((virtual_deadline, deadline, cost_s, None) for virtual_deadline, deadline, cost_s in rows)
