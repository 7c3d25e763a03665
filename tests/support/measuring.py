"""What tests of profiles share: a random model, pictures of noise, and measurements written by hand."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from foveate.core.plan import Plan
from foveate.core.profile import Data, Measurement, Profile, Setting
from foveate.models.layers.config import ViTConfig
from foveate.models.loading.loader import UnprofiledModel
from foveate.models.profiling.dataset import Dataset, DecodedDataset
from foveate.models.profiling.profile_state import ProfilingJob
from foveate.models.runners.image import TorchRunner
from foveate.models.vit.vit import ElasticViT
from foveate.models.weights.checkpoint import Checkpoint

HERE = Setting("a chip", 2, "fp32", "2.13", "3.11", "0.1", "2026-01-01")
GEOMETRY = ViTConfig(image_size=64, width=24, depth=4, heads=2, classes=5)
PLANS = ("full", "evit:0.6", "evit:0.2", "tiny@32")
PICTURES = 24


def plan(
    name: str, quality: float, gflops: float, seconds: float | None = None, rung: bool = False
) -> Measurement:
    """A measurement; `seconds` a picture in batches of 8."""
    latency = {} if seconds is None else {1: 99.0, 8: 8 * seconds}
    return Measurement(name, quality, None, gflops, 5, latency, rung)


def written(*measurements: Measurement, setting: Setting = HERE) -> Profile:
    return Profile("tiny", "0" * 64, Data("somewhere", 10, False), 0, setting, measurements)


FULL = plan("full", 1.0, 1.0)


@torch.no_grad()
def tiny(seed: int = 0, geometry: ViTConfig = GEOMETRY, name: str = "tiny") -> Checkpoint:
    """A random model whose answers differ between pictures."""
    model, generator = ElasticViT(geometry).eval(), torch.Generator().manual_seed(seed)
    for key, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        gain = parameter.ndim == 1 and key.endswith("weight")
        parameter.copy_(1 + 0.1 * noise if gain else 0.2 * noise)
    return Checkpoint(name, geometry, model=model)


def shown(targets: Sequence[int] | None = None) -> Dataset:
    """Pictures that are stored as the seed of their noise."""
    items = tuple(str(i).encode() for i in range(PICTURES))
    return Dataset("noise", items, None if targets is None else tuple(targets))


def decode(data: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    patches = np.random.default_rng(int(data)).integers(0, 256, (4, 4, 3), np.uint8)
    return patches.repeat(16, 0).repeat(16, 1)


def album(targets: Sequence[int] | None = None) -> DecodedDataset:
    return DecodedDataset(shown(targets), decode, lambda *_: None)


def job(runner: TorchRunner, rounds: int = 2, seed: int = 0) -> ProfilingJob:
    plans = [Plan.parse(text, runner.full) for text in PLANS]
    return ProfilingJob(tuple(plans), batch_sizes=(1, 3), rounds=rounds, seed=seed)


def quiet(*_: object) -> None:
    """Watches nothing."""


def unprofiled(runner: TorchRunner, weights: str = "abc", **siblings: str) -> UnprofiledModel[TorchRunner]:
    return UnprofiledModel(runner, weights, siblings)
