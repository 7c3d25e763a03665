"""The time of a scheduling decision with a thousand waiting requests."""

import random
import statistics
from collections.abc import Callable, Sequence
from time import perf_counter

from foveate.core.model import Rung
from foveate.estimation.arrivals import ArrivalStats
from foveate.estimation.latency import LatencyModel
from foveate.scheduling.slo_policy import SloPolicy
from loadtests.simulate.workload import SimulatedRequest

WAITING, ROUNDS = 1000, 300
MAX_BATCH = 32


def cost_ms(rungs: Sequence[Rung], seed: int = 0) -> dict[str, float]:
    """Median milliseconds to choose the next batch and to admit a request.

    WAITING requests wait, with different deadlines and minimum rungs. Costs are computed again each time, as
    after a batch.
    """
    draw = random.Random(seed)  # noqa: S311 - not a secret
    latency = LatencyModel(rungs)
    policy = SloPolicy(rungs, latency, MAX_BATCH)
    plan = rungs[0].plan
    full_load_s = WAITING * latency.item_s(plan)
    requests = sorted(
        (_request(draw, number, full_load_s, len(rungs)) for number in range(WAITING)), key=_virtual_deadline
    )
    candidate = _request(draw, WAITING, full_load_s, len(rungs))
    arrivals = ArrivalStats(WAITING / full_load_s, full_load_s)

    def median_ms(work: Callable[[], object]) -> float:
        seconds = []
        for _ in range(ROUNDS):
            latency.observe(plan, MAX_BATCH, latency.predict(plan, MAX_BATCH))
            started = perf_counter()
            work()
            seconds.append(perf_counter() - started)
        return 1e3 * statistics.median(seconds)

    return {
        "decision_ms_at_1000": median_ms(lambda: policy.choose(requests, 0.0, 0.0, arrivals)),
        "admission_ms_at_1000": median_ms(lambda: policy.admit(candidate, requests, 0.0, 0.0)),
    }


def _virtual_deadline(request: SimulatedRequest) -> float:
    return request.virtual_deadline


def _request(draw: random.Random, number: int, full_load_s: float, rungs: int) -> SimulatedRequest:
    deadline = full_load_s * draw.uniform(0.5, 3)
    return SimulatedRequest(number, 0.0, deadline, deadline, draw.randrange(rungs), draw.choice("abc"))
