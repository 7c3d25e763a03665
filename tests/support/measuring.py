"""Shared by tests of profiles: a random model, images of noise, and measurements written by hand."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from foveate.core.outcome import Result
from foveate.core.plan import Plan
from foveate.core.profile import Measurement, MeasurementEnvironment, Profile, ProfilingSet
from foveate.models.layers.config import ViTConfig
from foveate.models.loading.loader import UnprofiledModel
from foveate.models.profiling.dataset import Dataset, DecodedDataset
from foveate.models.profiling.profile_state import ProfilingJob
from foveate.models.runners.image import TorchRunner
from foveate.models.vit.vit import ElasticViT
from foveate.models.weights.checkpoint import Checkpoint

HERE = MeasurementEnvironment("a chip", 2, "fp32", "2.13", "3.11", "0.1", "2026-01-01")
CONFIG = ViTConfig(image_size=64, width=24, depth=4, heads=2, classes=5)
PLANS = ("full", "evit:0.6", "evit:0.2", "tiny@32")
IMAGES = 24


def plan(
    name: str, quality: float, gflops: float, seconds: float | None = None, rung: bool = False
) -> Measurement:
    """A measurement; `seconds` for each image in batches of 8."""
    latency = {} if seconds is None else {1: 99.0, 8: 8 * seconds}
    return Measurement(name, quality, None, gflops, 5, latency, rung)


def written(*measurements: Measurement, setting: MeasurementEnvironment = HERE) -> Profile:
    """A profile with these measurements."""
    return Profile("tiny", "0" * 64, ProfilingSet("somewhere", 10, False), 0, setting, measurements)


FULL = plan("full", 1.0, 1.0)


@torch.no_grad()
def tiny(seed: int = 0, config: ViTConfig = CONFIG, name: str = "tiny") -> Checkpoint:
    """A random model that answers different images differently."""
    model, generator = ElasticViT(config).eval(), torch.Generator().manual_seed(seed)
    for key, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        gain = parameter.ndim == 1 and key.endswith("weight")
        parameter.copy_(1 + 0.1 * noise if gain else 0.2 * noise)
    return Checkpoint(name, config, model=model)


def noise_dataset(targets: Sequence[int] | None = None) -> Dataset:
    """IMAGES images, each stored as the seed of its noise."""
    items = tuple(str(i).encode() for i in range(IMAGES))
    return Dataset("noise", items, None if targets is None else tuple(targets))


def decode(data: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The image (64, 64, 3) of a seed: 4 x 4 patches of random colours."""
    patches = np.random.default_rng(int(data)).integers(0, 256, (4, 4, 3), np.uint8)
    return patches.repeat(16, 0).repeat(16, 1)


def noise_images(targets: Sequence[int] | None = None) -> DecodedDataset:
    """The decoded images of `noise_dataset`."""
    return DecodedDataset(noise_dataset(targets), decode, quiet)


def profiling_job(runner: TorchRunner, rounds: int = 2, seed: int = 0) -> ProfilingJob:
    """A job with PLANS."""
    plans = [Plan.parse(text, runner.full) for text in PLANS]
    return ProfilingJob(tuple(plans), batch_sizes=(1, 3), rounds=rounds, seed=seed)


def quiet(*_: object) -> None:
    """Reports no progress."""


class InterruptAfter:
    """Reports progress, and raises KeyboardInterrupt after this number of reports."""

    def __init__(self, reports: int) -> None:
        self.left = reports

    def __call__(self, *_: object) -> None:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt


def unprofiled(runner: TorchRunner, weights: str = "abc", **siblings: str) -> UnprofiledModel[TorchRunner]:
    """The runner with these digests."""
    return UnprofiledModel(runner, weights, siblings)


def single_results(runner: TorchRunner, text: str) -> list[Result]:
    """The result of a plan for each image, in batches of one."""
    chosen = Plan.parse(text, runner.full)
    results = []
    for i in range(IMAGES):
        (result,) = runner.run(runner.stack([decode(str(i).encode())], chosen), chosen)
        assert isinstance(result, Result)
        results.append(result)
    return results


def predicted_classes(runner: TorchRunner, text: str) -> list[int]:
    """The top-1 class of each image under a plan."""
    return [int(result.scores.argmax()) for result in single_results(runner, text)]


def half_right(runner: TorchRunner) -> list[int]:
    """Labels with which full is right for every second image."""
    return [(index + number % 2) % 5 for number, index in enumerate(predicted_classes(runner, "full"))]


def job_measurements(profile: Profile) -> list[Measurement]:
    """The measurements of a job's own plans, without those of the choice by content."""
    return [m for m in profile.measurements if not m.plan.startswith("content")]
