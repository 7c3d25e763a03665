"""The runner of point prompts: (features and clicks, plan) -> the object that was clicked.

It is served together with a model that segments, whose features it reads.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from foveate.core.errors import BadPlan, RunFailed, SetupError
from foveate.core.model import ModelCard, Rung
from foveate.core.outcome import Result
from foveate.core.plan import Plan, Precision
from foveate.core.point_prompts import MAX_POINTS, Features, Point, PointPrompt
from foveate.models.heads.dense import STRIDE
from foveate.models.heads.point_prompts import PADDING, PointPromptHead, PointPromptSpec
from foveate.models.runners.base import DEFAULT_MAX_BATCH, DTYPES, MAX_BATCH
from foveate.models.runners.dense import class_maps
from foveate.models.weights.checkpoint import Checkpoint

log = logging.getLogger(__name__)

CLICKS = "clicks.safetensors"
"""The name of the file with a model's click head, after the model's name and a dot."""


@dataclass(frozen=True, slots=True)
class PromptBatch:
    """A batch of features and points."""

    coarse: Tensor
    """(B, W, S / patch, S / patch) float16."""
    fine: Tensor
    """(B, F, S / 4, S / 4) float16."""
    points: Tensor
    """(B, N, 3) float32, as the click head takes them."""


class ClickRunner:
    """A click head on one device. `stack` and `run` keep no state.

    An answer depends on the features and on all points of its request alone, so that retries and replicas
    agree.
    """

    def __init__(
        self, model: Checkpoint, head: PointPromptHead, precision: Precision, device: str, max_batch: int
    ) -> None:
        """model: the model whose features the head reads; max_batch: 0 for the device's default."""
        self.device = torch.device(device)
        if self.device.type == "cpu":
            precision = "fp32"  # so small a head is no faster in bf16
        self.dtype = DTYPES[precision]
        self.head = head.to(self.device, self.dtype).eval()
        head.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.max_batch = max_batch or MAX_BATCH.get(self.device.type, DEFAULT_MAX_BATCH)
        self.full = Plan(f"{model.name}-clicks", model.config.image_size, precision)
        self.times: Mapping[int, Mapping[Plan, Mapping[int, float]]] = {}
        """Seconds per batch by number of threads, plan and batch size, as far as they are measured."""
        self.warmup: Any = None
        """The first runs that are left, a `Warmup` of the engine's protocol; None for none."""
        rung = Rung(self.full, self._gflops(self.full), self._tokens(self.full), 1.0)
        self.card = ModelCard(
            name=self.full.variant,
            description=f"outlines the clicked object, from features of {model.name}",
            full=self.full,
            labels=("object",),
            parameters=sum(p.numel() for p in head.parameters()),
            input=None,
            ladder=(rung,),
            licence=model.licence,
            source=model.source,
            task="clicks",
        )

    def use(self, threads: int) -> None:
        """Run the following batches on this number of threads."""
        torch.set_num_threads(threads)

    def check(self, plan: Plan) -> None:
        """Raise BadPlan for a plan other than full at the image size of the features."""
        if (plan.variant, plan.precision) != (self.full.variant, self.full.precision) or plan.parts != "full":
            raise BadPlan(f"{self.full.variant} runs {self.full} and other image sizes of it, not {plan}")
        if plan.image_size % self.head.patch_size:
            raise BadPlan(f"patches of {self.head.patch_size} pixels do not tile images of {plan.image_size}")

    def cost_varies(self, plan: Plan) -> bool:
        """False: the compute depends on the image size alone."""
        return False

    def candidates(self) -> tuple[Plan, ...]:
        """Full alone: the head has no cheaper plan."""
        return (self.full,)

    def blank_batch(self, size: int) -> PromptBatch:
        """`size` blank images with a click in the middle."""
        coarse, fine = self._feature_shapes(self.full)
        features = Features(np.zeros(coarse, np.float16), np.zeros(fine, np.float16))
        return self.stack([PointPrompt(features, (Point(0.5, 0.5),))] * size, self.full)

    def _feature_shapes(self, plan: Plan) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        """The shapes of coarse and fine features at the plan's image size."""
        side, dense = plan.image_size, self.head.dense
        patches, squares = side // self.head.patch_size, side // STRIDE
        return (patches, patches, dense.width), (squares, squares, dense.fine)

    def stack(self, media: Sequence[PointPrompt], plan: Plan) -> PromptBatch:
        """Features at the plan's image size, and points padded to the longest row.

        Raises RunFailed for features of another size and for too few or too many points.
        """
        shapes = self._feature_shapes(plan)
        for medium in media:
            if (medium.features.coarse.shape, medium.features.fine.shape) != shapes:
                raise RunFailed(f"the features are not those of an image of {plan.image_size} pixels a side")
            if not 1 <= len(medium.points) <= MAX_POINTS:
                raise RunFailed(f"an image takes 1 to {MAX_POINTS} clicks, not {len(medium.points)}")
        points = np.full((len(media), max(len(medium.points) for medium in media), 3), PADDING, np.float32)
        for row, medium in zip(points, media, strict=True):
            row[: len(medium.points)] = [(point.x, point.y, point.positive) for point in medium.points]
        return PromptBatch(
            self._channels_last([medium.features.coarse for medium in media]),
            self._channels_last([medium.features.fine for medium in media]),
            torch.from_numpy(points).to(self.device, non_blocking=True),
        )

    def _channels_last(self, arrays: Sequence[np.ndarray]) -> Tensor:
        """(H, W, C) arrays to one tensor (B, C, H, W) whose channels are last in memory."""
        return torch.from_numpy(np.stack(arrays)).to(self.device, non_blocking=True).permute(0, 3, 1, 2)

    @torch.inference_mode()
    def run(self, batch: PromptBatch, plan: Plan) -> Sequence[Result | Exception]:
        """Maps of the object, class 1, and of everything else, class 0.

        An item whose scores are not finite fails alone.
        """
        logits = self.head(batch.coarse.to(self.dtype), batch.fine.to(self.dtype), batch.points).float()
        results: list[Result | Exception] = []
        for shares, maps in class_maps(torch.cat([torch.zeros_like(logits), logits], 1)):
            if maps is None:
                results.append(RunFailed("the model's scores for this click are not finite"))
            else:
                results.append(Result(shares, self._tokens(plan), 0, self._gflops(plan), maps=maps))
        return results

    def _tokens(self, plan: Plan) -> int:
        return (plan.image_size // self.head.patch_size) ** 2

    def _gflops(self, plan: Plan) -> float:
        return self.head.macs(plan.image_size // self.head.patch_size) / 1e9


def features_of(coarse: Tensor, fine: Tensor) -> list[Features]:
    """A dense head's feature maps of a batch, image by image. Each image's features own their memory.

    coarse: (B, W, S / patch, S / patch); fine: (B, F, S / 4, S / 4).
    """
    rows = (t.permute(0, 2, 3, 1).half().cpu().numpy() for t in (coarse, fine))
    return [Features(*(np.array(t, order="C") for t in row)) for row in zip(*rows, strict=True)]


def save_clicks(path: Path, head: PointPromptHead, weights: str) -> None:
    """Write a click head as float16. weights: the digest of the model whose features it reads."""
    state = {name: value.half().contiguous() for name, value in head.state_dict().items()}
    save_file(state, path, {"clicks": json.dumps(asdict(head.spec)), "weights": weights})
    path.chmod(0o644)


def read_clicks(path: Path, model: Checkpoint, weights: str) -> PointPromptHead | None:
    """Read a click head in float32. None, with a warning, where it was trained on features of other weights.

    model: the model whose features it reads; weights: its digest. Raises SetupError for an unreadable file.
    """
    if model.dense is None:
        raise SetupError(f"{path.name} is for a model that segments, and {model.name} has no dense head")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            spec = PointPromptSpec(**json.loads(metadata["clicks"]))
            state = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 -- not a mapping
        with torch.device("meta"):
            head = PointPromptHead(model.dense, model.config.patch_size, spec)
        head.load_state_dict(state, assign=True)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise SetupError(f"{path.name} is not a readable click head: {error}") from error
    if metadata.get("weights") != weights:
        log.warning("%s reads the features of other weights than %s has, and is ignored", path, model.name)
        return None
    return head
