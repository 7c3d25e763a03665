"""The policy that keeps promises: as good as time allows, in time, and refused at once where it cannot be.

Everybody who waits is served at one rung, the best at which all of them are answered in time and those
who are expected will be. Quality per second falls with every rung, so that spending evenly is worth more
than spending much on some; and nobody is degraded more than others.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from heapq import merge
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from foveate.core.batching import BATCH_SIZES
from foveate.core.model import Rung
from foveate.core.outcome import Reason
from foveate.core.plan import Plan
from foveate.estimation.arrivals import ArrivalStats
from foveate.estimation.latency import Predictor
from foveate.scheduling.device_demand import NO_DEMAND, DeviceDemand, Floats
from foveate.scheduling.policy import BatchDecision, QueuedRequest, Refusal, W
from foveate.scheduling.queue_snapshot import BatchCosts, Mask, QueueSnapshot

HEADROOM = 0.6
"""Share of the time that requests allow which the queue may be expected to fill."""
AHEAD_S = 0.25
"""How far ahead, at most, the queue is expected to grow as it does: longer bursts show in time."""

GUEST = 0.25
"""Share of what requests to other models allow that a batch may take, though no less than one request."""
SHARED = 0.8
"""Share of a device's time that models may want together: what comes for one comes unevenly, and its batches
are small where those of others run between them."""

DEADLINE: Reason = "deadline"


class SloPolicy:
    """Keeps no state of its own but the latency model, which others refit, and what follows from it."""

    def __init__(
        self, rungs: Sequence[Rung], latency: Predictor, max_batch: int, headroom: float = HEADROOM
    ) -> None:
        """rungs: cheapest first, the last is full; each better than those before it."""
        self.plans = tuple(rung.plan for rung in rungs)
        self.latency, self.max_batch, self.headroom = latency, max_batch, headroom
        self._known = latency.version, BatchCosts.of(self.plans, latency, max_batch)

    def cost(self, plan: Plan) -> float:
        """Seconds a picture takes in a batch worth making."""
        size = self.latency.efficient_batch_size(plan, self.max_batch)
        return self.latency.predict(plan, size) / size

    def admit(
        self,
        entry: W,
        waiting: Sequence[W],
        now: float,
        free_at: float,
        ready_at: float = 0.0,
        others: DeviceDemand = NO_DEMAND,
    ) -> Refusal[W] | None:
        if math.isinf(entry.deadline):
            return None
        start = max(now, free_at)
        fits, work_s, tight = self._fits(entry, waiting, start, ready_at, others)
        if fits:
            return None
        own = self._own(entry)
        if max(start, ready_at) + own <= entry.deadline:  # else nobody who goes makes it any better
            lesser = tight if tight is not None and _priority_boost(tight) < _priority_boost(entry) else None
            for other in (self._largest_share(entry, waiting), lesser):
                rest = [one for one in waiting if one is not other]
                if other is not None and self._fits(entry, rest, start, ready_at, others)[0]:
                    return Refusal(other, start - now + work_s, own)
        return Refusal(entry, start - now + work_s, own)

    def _fits(
        self, entry: W, waiting: Sequence[W], start: float, ready_at: float, others: DeviceDemand
    ) -> tuple[bool, float, W | None]:
        """Whether a newcomer is in time and makes nobody late, all at the least they accept; the seconds of
        work that wait; and who has the least time to spare of those that it would be served before, where
        that one is of this model."""
        own = self._own(entry)
        ahead = behind = 0.0
        tight: W | None = None
        room = math.inf
        for virtual_deadline, deadline, cost, other in merge(
            self._least(waiting), _least(others), key=itemgetter(0)
        ):
            left = deadline - start - ahead - behind - cost
            if left < -1e-9:
                continue  # it is lost, newcomer or not, and will be given up
            if virtual_deadline <= entry.virtual_deadline:
                ahead += cost
            else:
                behind += cost
                if left < room:
                    tight, room = other, left
        done = max(start + ahead, ready_at) + own
        return done <= entry.deadline and room >= own, ahead + behind, tight

    def _least(self, waiting: Sequence[W]) -> Iterator[tuple[float, float, float, W]]:
        """Turn, deadline and cost at the least that is accepted, of each."""
        least: list[float] = self._prices(self.plans).cost.tolist()
        pinned: dict[Plan, float] = {}
        for other in waiting:
            plan = other.pinned
            if plan is None:
                cost = least[other.min_rung]
            elif plan in pinned:
                cost = pinned[plan]
            else:
                cost = pinned[plan] = self.cost(plan)
            yield other.virtual_deadline, other.deadline, cost, other

    def _own(self, entry: W) -> float:
        """Seconds after which an answer is there, at the least that is accepted, with a margin."""
        return self.latency.safety_factor * self.latency.predict(self._cheapest(entry), 1)

    def _largest_share(self, entry: W, waiting: Sequence[W]) -> W | None:
        """The last to come of the tenant with the most that waits, where that is more than the newcomer's
        own would be: so that one tenant's flood is refused, and not what others send. Whoever has no
        deadline is never given up."""
        held = Counter(other.tenant for other in waiting)
        tenant, most = max(held.items(), key=lambda item: item[1], default=(entry.tenant, 0))
        if most <= held[entry.tenant] + 1:
            return None
        theirs = (other for other in reversed(waiting) if other.tenant == tenant)
        return next((other for other in theirs if not math.isinf(other.deadline)), None)

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
        start = max(now, free_at)
        view = QueueSnapshot.of(waiting, start, self.plans)
        prices = self._prices(view.plans)
        # Who cannot be answered in time even alone, at the least that it accepts, stands in nobody's way.
        gone = (prices.fixed + prices.each)[view.gets(0)] > view.slack
        rung, reason, others = 0, DEADLINE, others.since(start)
        if not gone.all():
            rung, reason = self._rung(view.of_rows(~gone), prices, start - now, arrivals, others)
            if rung < 0:
                gone[self._shed(view, ~gone, prices, others)] = True
                rung = 0
        refused = tuple(waiting[row] for row in np.flatnonzero(gone).tolist())
        stays = np.flatnonzero(~gone).tolist()
        if not stays:
            return BatchDecision((), self.plans[-1], False, refused=refused)
        view, head = view.of_rows(~gone), waiting[stays[0]]
        rows, full = self._batch(view, rung, prices, self._spare(others))
        chosen = tuple(waiting[stays[row]] for row in rows)
        return BatchDecision(
            chosen, self._plan(head, rung), full, "pinned" if head.pinned else reason, refused
        )

    def _prices(self, plans: tuple[Plan, ...]) -> BatchCosts:
        """What batches cost now; those of the rungs are reckoned only once they may have changed."""
        if plans != self.plans:
            return BatchCosts.of(plans, self.latency, self.max_batch)
        if self._known[0] != self.latency.version:
            self._known = self.latency.version, BatchCosts.of(plans, self.latency, self.max_batch)
        return self._known[1]

    def _shed(
        self, view: QueueSnapshot, stays: Mask, prices: BatchCosts, others: DeviceDemand
    ) -> NDArray[np.int64]:
        """Who has to go, as rows, where not all who stay can be answered in time at the least they accept, so
        that the most are. Who is served in the last moment is served alone, at the cost of a batch: so the
        first in line go, those with a head start last, and nobody who has no deadline."""
        rows = np.flatnonzero(stays & np.isfinite(view.slack))
        rows = rows[np.argsort(view.priority_boost[rows], kind="stable")]
        tried = [0, *(size for size in BATCH_SIZES if size <= len(rows))]

        def kept(count: int) -> int:
            left = stays.copy()
            left[rows[:count]] = False
            return self._in_time(view.of_rows(left), prices, others) if left.any() else 0

        return rows[: max(tried, key=kept)]

    def _in_time(self, view: QueueSnapshot, prices: BatchCosts, others: DeviceDemand) -> int:
        done, _ = self._done(view, 0, prices, others)
        return int((done + (self.latency.safety_factor - 1) * done[0] <= view.slack).sum())

    def _done(
        self, view: QueueSnapshot, rung: int, prices: BatchCosts, others: DeviceDemand
    ) -> tuple[Floats, Floats]:
        """When the batch of each is done, and each of the others, were all served in the order of their turns
        and given as much alike: the first batch is as large as may be."""
        gets, count = view.gets(rung), len(view.slack)
        plan = gets[0]
        brief = np.minimum(view.slack, self._spare(others))
        first, most = self._first(brief, plan, prices), int(prices.efficient[plan])
        at = np.arange(count) - first
        batch = np.where(at < 0, 0, at // most + 1)
        last = np.minimum(first + batch * most, count) - 1
        own: Floats = prices.each[gets].cumsum()[last] + prices.fixed[plan] * (batch + 1)
        if not len(others.virtual_deadline):
            return own, others.virtual_deadline
        spent = others.waiting_s(self._ease(rung, prices)).cumsum()
        turns = view.virtual_deadline[np.where(at < 0, 0, first + (batch - 1) * most)]
        ahead = np.where(batch, np.searchsorted(others.virtual_deadline, turns), 0)  # the first goes now
        behind = np.maximum(1, np.searchsorted(turns, others.virtual_deadline, "right"))
        return own + np.concatenate(([0.0], spent))[ahead], spent + own[behind - 1]

    def _ease(self, rung: int, prices: BatchCosts) -> float:
        """What is spent on each at a rung, over what full takes."""
        return float(prices.cost[rung] / prices.cost[len(self.plans) - 1])

    def _spare(self, others: DeviceDemand) -> float:
        """How long a batch may take beside what others want. Who would be late at the least that all of them
        accept, were there nothing else, is not made late by it."""
        left = others.deadline - self.latency.safety_factor * others.least_s.cumsum()
        return float(min(GUEST * others.allowed_s, left[left >= 0].min(initial=math.inf)))

    def _first(self, slack: Floats, plan: int, prices: BatchCosts) -> int:
        """Size of a batch of those whose slack this is, in order, that makes nobody in it late."""
        tightest = np.minimum.accumulate(slack[: prices.efficient[plan]])
        needs = prices.fixed[plan] + prices.each[plan] * np.arange(1, len(tightest) + 1)
        fits = self.latency.safety_factor * needs <= tightest
        return max(1, len(fits) if fits.all() else int(np.argmin(fits)))

    def _cheapest(self, entry: W) -> Plan:
        return self._plan(entry, 0)

    def _plan(self, entry: W, rung: int) -> Plan:
        """What an entry gets when the others get this rung."""
        return entry.pinned or self.plans[max(rung, entry.min_rung)]

    def _rung(
        self,
        view: QueueSnapshot,
        prices: BatchCosts,
        delay_s: float,
        arrivals: ArrivalStats,
        others: DeviceDemand,
    ) -> tuple[int, Reason]:
        """The best rung at which all are answered in time, and those who are expected too; -1 where at
        none all are. Other models' requests are taken to be eased as much."""
        reason: Reason = "full"
        safety_factor = self.latency.safety_factor
        for rung in range(len(self.plans) - 1, -1, -1):
            costs = prices.cost[view.gets(rung)]
            done, theirs = self._done(view, rung, prices, others)
            fair = self._harmless(theirs, others) and self._keeps_up(
                delay_s, costs, arrivals, others, self._ease(rung, prices)
            )
            if rung and not fair:
                reason = "load"
            elif (safety_factor * done > view.slack).any():
                reason = "deadline"
            else:
                return rung, reason
        return -1, reason

    def _harmless(self, theirs: Floats, others: DeviceDemand) -> bool:
        """Whether none of the others is late, but for those who would be anyhow at the least they accept."""
        safety_factor = self.latency.safety_factor
        late = safety_factor * theirs > others.deadline
        return not (late & (safety_factor * others.least_s.cumsum() <= others.deadline)).any()

    def _keeps_up(
        self, delay_s: float, costs: Floats, arrivals: ArrivalStats, others: DeviceDemand, ease: float
    ) -> bool:
        """Whether the queue will not outgrow its share of the time allowed if as many come as of late."""
        cost_s = float(costs.mean())
        wanted = arrivals.rate * cost_s + others.share(ease)
        if others.any and wanted > SHARED:
            return False
        if math.isinf(arrivals.allowed_s):
            return True
        before = others.waiting_s(ease)[others.virtual_deadline < arrivals.allowed_s]
        backlog_s = delay_s + (len(costs) + arrivals.preparing) * cost_s + float(before.sum())
        grows = min(arrivals.allowed_s, AHEAD_S) * (wanted - 1)
        return backlog_s + grows <= self.headroom * arrivals.allowed_s

    def _batch(
        self, view: QueueSnapshot, rung: int, prices: BatchCosts, most_s: float
    ) -> tuple[list[int], bool]:
        """The head and those behind it that get the same plan, as long as a larger batch makes pictures
        cheaper, takes no more than `most_s`, and makes nobody late: nor whoever runs next, at the least that
        is accepted."""
        gets = view.gets(rung)
        same, most = gets == gets[0], int(prices.efficient[gets[0]])
        rows = np.flatnonzero(same)[:most]
        slack = np.minimum(view.slack[rows], most_s)
        if not same.all():
            least = view.gets(0)[~same]
            alone = self.latency.safety_factor * (prices.fixed[least] + prices.each[least])
            slack = np.minimum(slack, (view.slack[~same] - alone).min())
        fitting = self._first(slack, gets[0], prices)
        size = max(size for size in BATCH_SIZES if size <= fitting)
        return rows[:size].tolist(), fitting == most or fitting < len(rows)


def _least(others: DeviceDemand) -> Iterator[tuple[float, float, float, None]]:
    """As `Promise._least`, of other models' requests."""
    rows = zip(
        others.virtual_deadline.tolist(), others.deadline.tolist(), others.least_s.tolist(), strict=True
    )
    return ((virtual_deadline, deadline, cost, None) for virtual_deadline, deadline, cost in rows)


def _priority_boost(entry: QueuedRequest) -> float:
    return entry.deadline - entry.virtual_deadline
