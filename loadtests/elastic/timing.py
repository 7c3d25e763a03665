"""Compare the speed of plans on a shared machine."""

import statistics
import time
from collections.abc import Mapping, Sequence

from torch import Tensor

from foveate.core.plan import Plan
from foveate.models.runners.image import TorchRunner


def interleaved(
    runner: TorchRunner, plans: Mapping[str, Plan], batch: Tensor, rounds: int, repeats: int = 3
) -> dict[str, list[float]]:
    """Seconds per batch for each plan, one value per round; each round measures all plans.

    Other load on the machine then affects all plans of a round, so ratios within a round stay valid. A round
    counts the fastest of `repeats`, because other load only ever adds time.
    """
    for plan in plans.values():
        runner.run(batch, plan)
    seconds: dict[str, list[float]] = {name: [] for name in plans}
    for _ in range(rounds):
        for name, plan in plans.items():
            seconds[name].append(min(_once(runner, plan, batch) for _ in range(repeats)))
    return seconds


def ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """The speed-up, as the median over rounds."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def _once(runner: TorchRunner, plan: Plan, batch: Tensor) -> float:
    started = time.perf_counter()
    runner.run(batch, plan)
    return time.perf_counter() - started
