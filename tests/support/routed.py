"""A family whose router is sure and right on flat images, and unsure and wrong on all others."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from foveate.core.plan import Plan
from foveate.models.layers.config import ViTConfig
from foveate.models.profiling.dataset import Dataset, DecodedDataset
from foveate.models.runners.image import TorchRunner
from foveate.models.vit.resolve import resolve
from foveate.models.vit.stitch import StitchSpec
from foveate.models.vit.vit import ResolvedPlan, TrunkOutput
from foveate.models.weights.family import Family
from tests.support.measuring import CONFIG, quiet, tiny

ROUTER = "router@64"
SMALL = ViTConfig(image_size=64, width=8, depth=1, heads=1, classes=5)
EVERY = 6
"""One image in this many is not flat."""
STITCH = StitchSpec("tiny", 2, "router", 1)
WHITE = np.full((64, 64, 3), 255, np.uint8)
"""An image to which the router gives no finite answer."""


def runner(max_batch: int = 16) -> TorchRunner:
    """The family's runner. A hook replaces the router's logits, which depend on full's answer."""
    own, router = tiny(), tiny(seed=1, config=SMALL, name="router")

    def replace_logits(_: nn.Module, arguments: tuple[Tensor, ResolvedPlan], out: TrunkOutput) -> TrunkOutput:
        images = arguments[0]
        best = own.model(images, resolve(own.model, Plan("tiny", 64))).logits.argmax(1)
        flat = images.flatten(1).std(1) < 0.8
        sure, unsure = 8.0 * F.one_hot(best, 5), 0.4 * F.one_hot((best + 1) % 5, 5)
        white = (images > 0.999).flatten(1).all(1)
        logits = torch.where(flat[:, None], sure, unsure).masked_fill(white[:, None], torch.nan)
        return replace(out, logits=logits)

    router.model.register_forward_hook(replace_logits)
    torch.manual_seed(0)
    joint = nn.Linear(SMALL.width, CONFIG.width)
    return TorchRunner(Family(own, (router,), {STITCH: joint}), max_batch=max_batch)


def is_hard(number: int) -> bool:
    """Whether the image with this number is not flat."""
    return number % EVERY == 0


def decoded(data: bytes) -> NDArray[np.uint8]:
    """The image (64, 64, 3) of a number: flat with little noise, or high contrast."""
    number = int(data)
    random = np.random.default_rng(number)
    if is_hard(number):
        return (255 * random.integers(0, 2, (4, 4, 3), np.uint8)).repeat(16, 0).repeat(16, 1)
    return random.integers(100, 156, (4, 4, 3), np.uint8).repeat(16, 0).repeat(16, 1)


class RecordingDataset(DecodedDataset):
    """A dataset that records the indices that were read."""

    requested: list[int]

    def at(self, indices: Sequence[int]) -> list[NDArray[np.uint8]]:  # type: ignore[override]
        self.requested += indices
        return super().at(indices)


def images(count: int = 120, targets: Sequence[int] | None = None) -> RecordingDataset:
    """The images with the numbers 0 to `count` - 1."""
    items = tuple(str(number).encode() for number in range(count))
    dataset = Dataset("flat", items, None if targets is None else tuple(targets))
    recording = RecordingDataset(dataset, decoded, quiet)
    recording.requested = []
    return recording
