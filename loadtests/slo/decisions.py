"""What a decision costs while a thousand requests wait."""

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
    """Median milliseconds to choose what runs next, and to admit one more, among a thousand with deadlines
    and floors of their own; prices are reckoned anew each time, as they are after a batch."""
    draw = random.Random(seed)  # noqa: S311 - dice, not secrets
    latency = LatencyModel(rungs)
    policy = SloPolicy(rungs, latency, MAX_BATCH)
    plan = rungs[0].plan
    least_s = WAITING * latency.item_s(plan)
    jobs = sorted((_job(draw, number, least_s, len(rungs)) for number in range(WAITING)), key=_due)
    newcomer = _job(draw, WAITING, least_s, len(rungs))
    flow = ArrivalStats(WAITING / least_s, least_s)

    def median_ms(work: Callable[[], object]) -> float:
        taken = []
        for _ in range(ROUNDS):
            latency.observe(plan, MAX_BATCH, latency.predict(plan, MAX_BATCH))
            started = perf_counter()
            work()
            taken.append(perf_counter() - started)
        return 1e3 * statistics.median(taken)

    return {
        "decision_ms_at_1000": median_ms(lambda: policy.choose(jobs, 0.0, 0.0, flow)),
        "admission_ms_at_1000": median_ms(lambda: policy.admit(newcomer, jobs, 0.0, 0.0)),
    }


def _due(job: SimulatedRequest) -> float:
    return job.virtual_deadline


def _job(draw: random.Random, number: int, least_s: float, rungs: int) -> SimulatedRequest:
    deadline = least_s * draw.uniform(0.5, 3)
    return SimulatedRequest(number, 0.0, deadline, deadline, draw.randrange(rungs), draw.choice("abc"))
