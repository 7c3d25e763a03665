"""Run (features and clicks, plan) -> the object that was clicked, beside a model that names pixels."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

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
from foveate.models.runners.base import DTYPES, MAX_BATCH
from foveate.models.runners.dense import class_maps
from foveate.models.weights.checkpoint import Checkpoint

log = logging.getLogger(__name__)

CLICKS = "clicks.safetensors"
"""What the file with a model's click head is called, after the name of the model and a dot."""


@dataclass(frozen=True, slots=True)
class Stacked:
    """A batch of clicked pictures."""

    coarse: Tensor
    """(B, W, S / patch, S / patch) float16."""
    fine: Tensor
    """(B, F, S / 4, S / 4) float16."""
    points: Tensor
    """(B, N, 3) float32, as the click head takes them."""


class ClickRunner:
    """A click head on one device. `stack` and `run` keep no state: an answer rests on the features and on all
    points given, so that retries and replicas agree."""

    def __init__(
        self, model: Checkpoint, head: PointPromptHead, precision: Precision, device: str, max_batch: int
    ) -> None:
        self.device = torch.device(device)
        if self.device.type == "cpu":
            precision = "fp32"  # what is this small is no faster in bf16
        self.dtype = DTYPES[precision]
        self.head = head.to(self.device, self.dtype).eval()
        head.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.max_batch = max_batch or MAX_BATCH.get(self.device.type, 16)
        self.full = Plan(f"{model.name}-clicks", model.config.image_size, precision)
        self.times: Mapping[int, Mapping[Plan, Mapping[int, float]]] = {}
        """Seconds of a batch by threads, plan and size, as measured at the start."""
        rung = Rung(self.full, self._gflops(self.full), self._tokens(self.full), 1.0)
        self.card = ModelCard(
            name=self.full.variant,
            description=f"outlines what is clicked in a picture that {model.name} has seen",
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
        """Run what comes next on so many threads."""
        torch.set_num_threads(threads)

    def check(self, plan: Plan) -> None:
        """Raises BadPlan for any but full at the size, whichever, that the features were computed at."""
        if (plan.variant, plan.precision) != (self.full.variant, self.full.precision) or plan.parts != "full":
            raise BadPlan(f"{self.full.variant} runs {self.full} and other sizes of it, and not {plan}")
        if plan.image_size % self.head.patch_size:
            raise BadPlan(f"patches of {self.head.patch_size} pixels do not tile images of {plan.image_size}")

    def varies(self, plan: Plan) -> bool:
        return False

    def blank(self, size: int) -> Stacked:
        """So many blank pictures, clicked in the middle."""
        side, dense = self.full.image_size, self.head.dense
        patches, squares = side // self.head.patch_size, side // STRIDE
        features = Features(
            np.zeros((patches, patches, dense.width), np.float16),
            np.zeros((squares, squares, dense.fine), np.float16),
        )
        return self.stack([PointPrompt(features, (Point(0.5, 0.5),))] * size, self.full)

    def stack(self, media: Sequence[PointPrompt], plan: Plan) -> Stacked:
        """Features of the plan's size, and points, of which each row has its own number."""
        side, dense = plan.image_size, self.head.dense
        patches, squares = side // self.head.patch_size, side // STRIDE
        coarse, fine = (patches, patches, dense.width), (squares, squares, dense.fine)
        for medium in media:
            if (medium.features.coarse.shape, medium.features.fine.shape) != (coarse, fine):
                raise RunFailed(f"the features are not those of a picture of {side} pixels a side")
            if not 1 <= len(medium.points) <= MAX_POINTS:
                raise RunFailed(f"a picture is clicked 1 to {MAX_POINTS} times, not {len(medium.points)}")
        points = np.full((len(media), max(len(medium.points) for medium in media), 3), PADDING, np.float32)
        for row, medium in zip(points, media, strict=True):
            row[: len(medium.points)] = [(point.x, point.y, point.positive) for point in medium.points]
        return Stacked(
            self._channels_last([medium.features.coarse for medium in media]),
            self._channels_last([medium.features.fine for medium in media]),
            torch.from_numpy(points).to(self.device, non_blocking=True),
        )

    def _channels_last(self, arrays: Sequence[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.stack(arrays)).to(self.device, non_blocking=True).permute(0, 3, 1, 2)

    @torch.inference_mode()
    def run(self, batch: Stacked, plan: Plan) -> Sequence[Result | Exception]:
        """Maps of the object, class 1, and of all else, class 0; a row that is not finite fails alone."""
        logits = self.head(batch.coarse.to(self.dtype), batch.fine.to(self.dtype), batch.points).float()
        found: list[Result | Exception] = []
        for shares, maps in class_maps(torch.cat([torch.zeros_like(logits), logits], 1)):
            if maps is None:
                found.append(RunFailed("the model's scores for this click are not finite"))
            else:
                found.append(Result(shares, self._tokens(plan), 0, self._gflops(plan), maps=maps))
        return found

    def _tokens(self, plan: Plan) -> int:
        return (plan.image_size // self.head.patch_size) ** 2

    def _gflops(self, plan: Plan) -> float:
        return self.head.macs(plan.image_size // self.head.patch_size) / 1e9


def features_of(coarse: Tensor, fine: Tensor) -> list[Features]:
    """What a dense head laid out for a batch, picture by picture: each has memory of its own."""
    rows = (t.permute(0, 2, 3, 1).half().cpu().numpy() for t in (coarse, fine))
    return [Features(*(np.array(t, order="C") for t in row)) for row in zip(*rows, strict=True)]


def save_clicks(path: Path, head: PointPromptHead, weights: str) -> None:
    """Write the head as float16. weights: the digest of the model whose features it reads."""
    state = {name: value.half().contiguous() for name, value in head.state_dict().items()}
    save_file(state, path, {"clicks": json.dumps(asdict(head.spec)), "weights": weights})
    path.chmod(0o644)


def read_clicks(path: Path, model: Checkpoint, weights: str) -> PointPromptHead | None:
    """The head in float32; None, and a warning, where it reads the features of other weights than these.

    Raises SetupError for a file that is none.
    """
    if model.dense is None:
        raise SetupError(f"{path.name} is for a model that names pixels, and {model.name} names none")
    try:
        with safe_open(path, framework="pt") as file:
            told = file.metadata() or {}
            spec = PointPromptSpec(**json.loads(told["clicks"]))
            state = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 -- not a mapping
        with torch.device("meta"):
            head = PointPromptHead(model.dense, model.config.patch_size, spec)
        head.load_state_dict(state, assign=True)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise SetupError(f"{path.name} is not a readable click head: {error}") from error
    if told.get("weights") != weights:
        log.warning("%s reads the features of other weights than %s has, and is ignored", path, model.name)
        return None
    return head
