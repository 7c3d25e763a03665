"""Reducers on DeiT-S: published GFLOPs, our GFLOPs, and the speed-up."""

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
from foveate.models.zoo import CheckpointCard
from loadtests.elastic.timing import interleaved, ratio

DEIT_S = ViTConfig(width=384, heads=6)
BATCH = 8


@dataclass(frozen=True, slots=True)
class PublishedSetting:
    """A setting that a paper reports for DeiT-S at 224x224."""

    spec: str
    gflops: float
    source: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """The same setting, measured here."""

    published: PublishedSetting
    gflops: float
    speedup: float
    """Latency of full over latency of the setting, in batches of BATCH."""
    predicted: float
    """GFLOPs of full over GFLOPs of the setting."""
    deciding: float
    """Share of the forward in which the reducer decides and tokens are moved."""

    @property
    def error(self) -> float:
        """Relative difference from the published GFLOPs."""
        return abs(self.gflops - self.published.gflops) / self.published.gflops

    @property
    def kept(self) -> float:
        """Measured speed-up over predicted speed-up."""
        return self.speedup / self.predicted


def random_deit() -> TorchRunner:
    """The shape of DeiT-S with random weights: its cost does not depend on the weights."""
    torch.manual_seed(0)
    state = {k: torch.randn_like(v) * 0.02 for k, v in ElasticViT(DEIT_S).state_dict().items()}
    precision: Precision = "bf16" if torch.backends.cpu.get_cpu_capability().startswith("AVX512") else "fp32"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return TorchRunner(attach(CheckpointCard("deit-s", DEIT_S), state, "deit-s"), precision, device)


def compare(settings: tuple[PublishedSetting, ...], rounds: int) -> Iterator[Comparison]:
    """Measure each setting against full, in interleaved rounds."""
    runner = random_deit()
    full = runner.full
    plans = {setting.spec: Plan.parse(setting.spec, full) for setting in settings}
    batch = runner.stack(_noise(BATCH), full)
    seconds = interleaved(runner, {"full": full, **plans}, batch, rounds)
    full_gflops = runner.card.ladder[-1].gflops
    for setting in settings:
        plan = plans[setting.spec]
        results = [r for r in runner.run(batch, plan) if not isinstance(r, Exception)]
        ours = statistics.mean(result.gflops for result in results)
        speedup = ratio(seconds["full"], seconds[setting.spec])
        deciding = deciding_share(runner, plan, batch)
        yield Comparison(setting, ours, speedup, full_gflops / ours, deciding)


def _noise(count: int) -> list:  # type: ignore[type-arg]
    return list(torch.randint(0, 256, (count, 224, 224, 3), dtype=torch.uint8).numpy())


class TimedReducer(Reducer):
    """A reducer that measures the time of its decisions and of moving tokens."""

    def __init__(self, reducer: Reducer) -> None:
        self.reducer = reducer
        self.point, self.proportional = reducer.point, reducer.proportional
        self.adaptive = reducer.adaptive
        self.deciding = self.moving = 0.0

    def needs(self, block: int) -> Needs | None:
        """The needs of the wrapped reducer."""
        return self.reducer.needs(block)

    def after(self, tokens: int, prefix: int, depth: int) -> tuple[int, ...]:
        """The schedule of the wrapped reducer."""
        return self.reducer.after(tokens, prefix, depth)

    def __call__(self, tokens: Tokens, attention: Attention, block: int) -> Assignment:
        started = _now()
        assignment = self.reducer(tokens, attention, block)
        decided = _now()
        tokens.apply(assignment)
        self.deciding += decided - started
        self.moving += _now() - decided
        return assignment


def _now() -> float:
    """The time in seconds, after the device has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


@torch.inference_mode()
def deciding_share(runner: TorchRunner, plan: Plan, batch: Tensor, repeats: int = 5) -> float:
    """Median share of a forward in which the reducer decides and tokens are moved."""
    resolved, model = runner.resolve(plan), runner.models[plan.variant]
    images = runner.preprocess(batch, plan.image_size)
    shares = []
    for _ in range(repeats + 1):
        timed = TimedReducer(resolved.reducer)
        started = _now()
        model(images, ResolvedPlan(timed, resolved.depth))
        total = _now() - started - timed.moving  # the tokens are moved a second time to measure that time
        shares.append((timed.deciding + timed.moving) / total)
    return statistics.median(shares[1:])
