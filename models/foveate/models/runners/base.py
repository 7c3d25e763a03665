"""What every runner of torch models shares: a device, a precision, and pixels made ready for them."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from foveate.core.errors import RunFailed
from foveate.core.model import ModelCard
from foveate.core.outcome import Result
from foveate.core.plan import Plan, Precision

Pixels = NDArray[np.uint8]
"""(S, S, 3) RGB; of a clip (T, S, S, 3)."""
RGB = tuple[float, float, float]

DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
MAX_BATCH = {"cpu": 32, "cuda": 64}
CLIP = 4
"""A batch of clips is so many times smaller than one of pictures."""


SIZES = tuple(sorted({base << shift for base in (1, 3) for shift in range(12)}))
"""Batches have one of few sizes, 1, 2, 3, 4, 6, 8, 12 ...: a CPU's kernels are made for each of them."""


class Loaded(Protocol):
    """What is asked of a runner before it is served."""

    full: Plan
    device: torch.device
    max_batch: int
    times: Mapping[int, Mapping[Plan, Mapping[int, float]]]

    @property
    def card(self) -> ModelCard: ...

    def check(self, plan: Plan) -> None: ...

    def use(self, threads: int) -> None: ...

    def varies(self, plan: Plan) -> bool:
        """Whether what a plan takes depends on what there is to see."""
        ...

    def blank(self, size: int) -> Any:
        """So many items of nothing in particular, stacked."""
        ...

    def stack(self, media: Sequence[Any], plan: Plan) -> Any: ...

    def run(self, batch: Any, plan: Plan) -> Sequence[Result | Exception]: ...


def fingerprint(*parts: nn.Module | str) -> str:
    """Of weights, and of whatever else answers rest on."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            total.update(part.encode())
            continue
        for name, tensor in sorted(part.state_dict().items()):
            total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            total.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return total.hexdigest()[:32]


class Base:
    """A device and the way from bytes to a model's range. `stack` keeps no state."""

    full: Plan
    """The plan that spends full compute."""

    def __init__(
        self, precision: Precision, device: str, max_batch: int, mean: RGB, std: RGB, frames: int = 0
    ) -> None:
        self.device, self.dtype, self.frames = torch.device(device), DTYPES[precision], frames
        most = MAX_BATCH.get(self.device.type, 16)
        self.max_batch = max_batch or (max(1, most // CLIP) if frames else most)
        # Pixels come in 0..255: one multiplication and one addition bring them to the model's range.
        middle, spread = (torch.tensor(v).view(1, 3, 1, 1) for v in (mean, std))
        self._scale = (1 / (255 * spread)).to(self.device)
        self._shift = (-middle / spread).to(self.device)
        self.times: Mapping[int, Mapping[Plan, Mapping[int, float]]] = {}
        """Seconds of a batch by threads, plan and size, as measured at the start."""

    def use(self, threads: int) -> None:
        """Run what comes next on so many threads."""
        torch.set_num_threads(threads)

    def varies(self, plan: Plan) -> bool:
        """Whether what a plan takes depends on what there is to see."""
        return plan.content is not None or plan.exit is not None

    def blank(self, size: int) -> Tensor:
        """So many black pictures, or clips, of full's size."""
        time, side = (self.frames,) if self.frames else (), self.full.image_size
        return torch.zeros(size, *time, side, side, 3, dtype=torch.uint8, device=self.device)

    def stack(self, media: Sequence[Pixels], plan: Plan) -> Tensor:
        """Pictures of the plan's size, or all of full's, (S, S, 3) to one tensor (B, S, S, 3) uint8; clips
        (T, S, S, 3) to (B, T, S, S, 3).

        No torch operator that would use threads runs here: a second pool of OpenMP threads in the
        process makes libgomp stop spinning, and a lone forward 1.7 times slower on two cores.
        """
        time = (self.frames,) if self.frames else ()
        sides = {self.full.image_size, plan.image_size}
        shapes = {pixels.shape for pixels in media}
        if len(shapes) > 1 or not shapes <= {(*time, side, side, 3) for side in sides}:
            raise RunFailed(f"expected pictures of {plan.image_size} pixels a side, got {shapes}")
        return torch.from_numpy(np.stack(media)).to(self.device, non_blocking=True)

    def sized(self, batch: Tensor, side: int) -> Tensor:
        """(B, S, S, 3) uint8 to (B, 3, side, side) in the model's range and precision.

        Pictures that came larger than the plan wants are scaled down here.
        """
        pixels = batch.permute(0, 3, 1, 2)
        if batch.shape[1] != side:
            # On bytes the CPU's kernel is five times faster than on floats; CUDA has none for bytes.
            source = pixels if self.device.type == "cpu" else pixels.float()
            pixels = F.interpolate(source, size=(side, side), mode="bicubic", antialias=True)
        return torch.addcmul(self._shift, pixels.float(), self._scale).to(self.dtype)
