"""Each reducer on DeiT-S: the paper's GFLOPs beside ours, and what the GFLOPs are worth in time."""

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.core.plan import Plan, Precision
from foveate.models.layers.config import ViTConfig
from foveate.models.layers.reducer import Attention, Needs, Reducer
from foveate.models.layers.tokens import Assignment, Tokens
from foveate.models.runners.image import TorchRunner
from foveate.models.vit.vit import ElasticViT, ResolvedPlan
from foveate.models.weights.checkpoint import attach
from foveate.models.zoo import Card
from loadtests.elastic.timing import interleaved, ratio

DEIT_S = ViTConfig(width=384, heads=6)
BATCH = 8


@dataclass(frozen=True, slots=True)
class Published:
    """A setting that a paper reports for DeiT-S at 224x224."""

    spec: str
    gflops: float
    source: str


@dataclass(frozen=True, slots=True)
class Compared:
    """The same setting here."""

    published: Published
    gflops: float
    speedup: float
    """Full's latency over this one's, batch of 8."""
    predicted: float
    """Full's GFLOPs over this one's."""
    deciding: float
    """Share of the forward that went into the reducer's decisions and moving tokens by them."""

    @property
    def error(self) -> float:
        return abs(self.gflops - self.published.gflops) / self.published.gflops

    @property
    def kept(self) -> float:
        """Share of the predicted speed-up that was measured."""
        return self.speedup / self.predicted


def random_deit() -> TorchRunner:
    """DeiT-S's shape with random weights: what it costs does not depend on what it has learnt."""
    torch.manual_seed(0)
    state = {k: torch.randn_like(v) * 0.02 for k, v in ElasticViT(DEIT_S).state_dict().items()}
    precision: Precision = "bf16" if torch.backends.cpu.get_cpu_capability().startswith("AVX512") else "fp32"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return TorchRunner(attach(Card("deit-s", DEIT_S), state, "deit-s"), precision, device)


def compare(settings: tuple[Published, ...], rounds: int) -> Iterator[Compared]:
    """Measure every setting against full, interleaved."""
    runner = random_deit()
    full = runner.full
    plans = {setting.spec: Plan.parse(setting.spec, full) for setting in settings}
    batch = runner.stack(_noise(BATCH), full)
    seconds = interleaved(runner, {"full": full, **plans}, batch, rounds)
    cost = runner.card.ladder[-1].gflops
    for setting in settings:
        plan = plans[setting.spec]
        results = [r for r in runner.run(batch, plan) if not isinstance(r, Exception)]
        ours = statistics.mean(result.gflops for result in results)
        speedup = ratio(seconds["full"], seconds[setting.spec])
        deciding = deciding_share(runner, plan, batch)
        yield Compared(setting, ours, speedup, cost / ours, deciding)


def _noise(count: int) -> list:  # type: ignore[type-arg]
    return list(torch.randint(0, 256, (count, 224, 224, 3), dtype=torch.uint8).numpy())


class Timed(Reducer):
    """A reducer that notes how long its decisions, and moving tokens by them, take."""

    def __init__(self, reducer: Reducer) -> None:
        self.reducer = reducer
        self.point, self.proportional = reducer.point, reducer.proportional
        self.adaptive = reducer.adaptive
        self.deciding = self.moving = 0.0

    def needs(self, block: int) -> Needs | None:
        return self.reducer.needs(block)

    def after(self, tokens: int, prefix: int, depth: int) -> tuple[int, ...]:
        return self.reducer.after(tokens, prefix, depth)

    def __call__(self, tokens: Tokens, attention: Attention, block: int) -> Assignment:
        started = _now()
        decided = self.reducer(tokens, attention, block)
        moment = _now()
        tokens.apply(decided)
        self.deciding += moment - started
        self.moving += _now() - moment
        return decided


def _now() -> float:
    """Seconds, once the device has done what it was told to."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


@torch.inference_mode()
def deciding_share(runner: TorchRunner, plan: Plan, batch: Tensor, repeats: int = 5) -> float:
    """Median share of a forward spent on deciding which tokens go on, and on moving them."""
    steps, model = runner.steps(plan), runner.models[plan.variant]
    images = runner.sized(batch, plan.image_size)
    shares = []
    for _ in range(repeats + 1):
        timed = Timed(steps.reducer)
        started = _now()
        model(images, ResolvedPlan(timed, steps.depth))
        total = _now() - started - timed.moving  # they were moved twice, once of it to be timed
        shares.append((timed.deciding + timed.moving) / total)
    return statistics.median(shares[1:])
