"""The base of every torch runner: device, precision, batch limit and pixel preprocessing."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from foveate.core.errors import BadPlan, RunFailed
from foveate.core.model import ModelCard
from foveate.core.nearest_names import did_you_mean
from foveate.core.outcome import Result
from foveate.core.plan import Plan, Precision
from foveate.models.zoo import RGB

Pixels = NDArray[np.uint8]
"""(S, S, 3) RGB of an image; (T, S, S, 3) of a clip."""

DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
MAX_BATCH = {"cpu": 32, "cuda": 64}
"""The default limit of items per batch, by device type."""
DEFAULT_MAX_BATCH = 16
"""The limit on any other device type."""
CLIP_BATCH_DIVISOR = 4
"""The batch limit of images, divided by this, is the batch limit of clips."""


class PlanRunner(Protocol):
    """What the runners of all models have, those of vision-language models included."""

    full: Plan
    """The plan that spends full compute."""

    @property
    def card(self) -> ModelCard:
        """Name, labels and ladder of the model."""
        ...

    def check(self, plan: Plan) -> None:
        """Raise BadPlan when this model cannot run the plan."""
        ...


class ModelRunner(PlanRunner, Protocol):
    """A torch runner as loading, warm-up and profiling use it: the engine's `Runner` and some more.

    Batch sizes are those of `foveate.core.batching.BATCH_SIZES`, up to `max_batch`.
    """

    max_batch: int
    """The largest number of items in one batch."""
    times: Mapping[int, Mapping[Plan, Mapping[int, float]]]
    """Seconds per batch by number of threads, plan and batch size, as far as they are measured."""
    warmup: Any
    """The first runs that are left, a `Warmup` of the engine's protocol; None for none."""

    @property
    def device(self) -> Any:
        """A `torch.device`, or for models of other libraries an object with its `type`."""
        ...

    def candidates(self) -> tuple[Plan, ...]:
        """The plans to try when a profile is measured, full first."""
        ...

    def use(self, threads: int) -> None:
        """Run the following batches on this number of threads."""
        ...

    def cost_varies(self, plan: Plan) -> bool:
        """Whether the plan's compute depends on the content of the items."""
        ...

    def blank_batch(self, size: int) -> Any:
        """A stacked batch of `size` empty items, for timing and tests."""
        ...

    def stack(self, media: Sequence[Any], plan: Plan) -> Any:
        """Decoded media as one input for `run`."""
        ...

    def run(self, batch: Any, plan: Plan) -> Sequence[Result | Exception]:
        """One result per item, in order; an exception stands for an item that failed."""
        ...


def fingerprint(*parts: nn.Module | str) -> str:
    """A digest of weights and of any text that answers depend on: 32 hexadecimal digits."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            total.update(part.encode())
            continue
        for name, tensor in sorted(part.state_dict().items()):
            total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            total.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return total.hexdigest()[:32]


def check_model(plan: Plan, full: Plan, variants: Collection[str]) -> None:
    """Raise BadPlan for a model that is not one of the variants, and for a precision other than full's."""
    if plan.variant not in variants:
        hint = did_you_mean(plan.variant, variants)
        raise BadPlan(f"{plan.variant} is not a variant of {full.variant}{hint}")
    if plan.precision != full.precision:
        raise BadPlan(f"{full.variant} is loaded in {full.precision}, not in {plan.precision}")


class BaseRunner:
    """A device, a precision and the preprocessing of pixels. `stack` keeps no state."""

    full: Plan
    """The plan that spends full compute."""

    def __init__(
        self, precision: Precision, device: str, max_batch: int, mean: RGB, std: RGB, frames: int = 0
    ) -> None:
        """max_batch: items per batch, 0 for the device's default; frames: of each clip, 0 for images.

        mean, std: of each channel in 0..1, as the model was trained with.
        """
        self.device, self.dtype, self.frames = torch.device(device), DTYPES[precision], frames
        limit = MAX_BATCH.get(self.device.type, DEFAULT_MAX_BATCH)
        self.max_batch = max_batch or (max(1, limit // CLIP_BATCH_DIVISOR) if frames else limit)
        self._scale, self._shift = self.normalisation(mean, std)
        self.decoded_side = 0
        """Side in pixels of the media of a ladder with plans larger than full; 0: full's image size."""
        self.times: Mapping[int, Mapping[Plan, Mapping[int, float]]] = {}
        """Seconds per batch by number of threads, plan and batch size, as far as they are measured."""
        self.warmup: Any = None
        """The first runs that are left, a `Warmup` of the engine's protocol; None for none."""

    def candidates(self) -> tuple[Plan, ...]:
        """The plans to try when a profile is measured, full first. Only full unless a runner knows more."""
        return (self.full,)

    def normalisation(self, mean: RGB, std: RGB) -> tuple[Tensor, Tensor]:
        """The factor and the summand, each (1, 3, 1, 1), that normalise pixels in 0..255."""
        means, deviations = (torch.tensor(v).view(1, 3, 1, 1) for v in (mean, std))
        return (1 / (255 * deviations)).to(self.device), (-means / deviations).to(self.device)

    def use(self, threads: int) -> None:
        """Run the following batches on this number of threads."""
        torch.set_num_threads(threads)

    def cost_varies(self, plan: Plan) -> bool:
        """Whether the plan's compute depends on the content of the items."""
        return plan.content is not None or plan.exit is not None

    def blank_batch(self, size: int) -> Tensor:
        """`size` black images or clips of the size that is decoded: (B, [T,] S, S, 3) uint8."""
        time, side = self._time_shape, self.decoded_side or self.full.image_size
        return torch.zeros(size, *time, side, side, 3, dtype=torch.uint8, device=self.device)

    @property
    def _time_shape(self) -> tuple[int, ...]:
        """(T,) of a runner of clips, () of a runner of images."""
        return (self.frames,) if self.frames else ()

    def stack(self, media: Sequence[Pixels], plan: Plan) -> Tensor:
        """Images (S, S, 3) to one tensor (B, S, S, 3) uint8; clips (T, S, S, 3) to (B, T, S, S, 3).

        S is the plan's image size, or that of the decoded media, or full's, for all items. Raises RunFailed
        for other shapes.

        No torch operator that would use threads runs here: a second pool of OpenMP threads in the
        process makes libgomp stop spinning, and a single forward 1.7 times slower on two cores.
        """
        time = self._time_shape
        sides = {self.full.image_size, plan.image_size, self.decoded_side or plan.image_size}
        shapes = {pixels.shape for pixels in media}
        if len(shapes) > 1 or not shapes <= {(*time, side, side, 3) for side in sides}:
            raise RunFailed(
                f"expected images of {plan.image_size} pixels a side, got pixels of shape {shapes}"
            )
        return torch.from_numpy(np.stack(media)).to(self.device, non_blocking=True)

    def preprocess(
        self, batch: Tensor, side: int, scale: Tensor | None = None, shift: Tensor | None = None
    ) -> Tensor:
        """Pixels (B, S, S, 3) uint8 to normalised images (B, 3, side, side) in the model's precision.

        Images that are larger than the plan's size are scaled down here. scale, shift: another
        `normalisation` than the model's own.
        """
        pixels = batch.permute(0, 3, 1, 2)
        if batch.shape[1] != side:
            # On bytes the CPU's kernel is five times faster than on floats; CUDA has none for bytes.
            source = pixels if self.device.type == "cpu" else pixels.float()
            pixels = F.interpolate(source, size=(side, side), mode="bicubic", antialias=True)
        scale, shift = self._scale if scale is None else scale, self._shift if shift is None else shift
        return torch.addcmul(shift, pixels.float(), scale).to(self.dtype)
