"""Compare the speed of plans on a machine that is shared and noisy."""

import statistics
import time
from collections.abc import Mapping, Sequence

from torch import Tensor

from foveate.core.plan import Plan
from foveate.models.runners.image import TorchRunner


def interleaved(
    runner: TorchRunner, plans: Mapping[str, Plan], batch: Tensor, rounds: int, repeats: int = 3
) -> dict[str, list[float]]:
    """Seconds a batch takes under each plan, one figure a round; every round times every plan.

    A noisy minute then hits all plans alike, and ratios inside a round stay meaningful. The best of
    `repeats` stands for a round: what a neighbour on the machine costs only ever adds.
    """
    for plan in plans.values():
        runner.run(batch, plan)
    seconds: dict[str, list[float]] = {name: [] for name in plans}
    for _ in range(rounds):
        for name, plan in plans.items():
            seconds[name].append(min(_once(runner, plan, batch) for _ in range(repeats)))
    return seconds


def ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """How many times faster, as the median over rounds."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def _once(runner: TorchRunner, plan: Plan, batch: Tensor) -> float:
    started = time.perf_counter()
    runner.run(batch, plan)
    return time.perf_counter() - started
