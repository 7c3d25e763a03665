"""Clips named with transformers: VideoMAE, TimeSformer, ViViT, and what answers like them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from foveate.core.errors import RunFailed, SetupError
from foveate.core.outcome import Result
from foveate.core.plan import Plan, Precision, sampled_frames
from foveate.core.profile import Profile
from foveate.models.huggingface.axes import Axes, Changes, moved
from foveate.models.huggingface.fetch import Pretrained
from foveate.models.huggingface.runner import PretrainedRunner

COUNTS = ("num_frames", "frames_per_clip")
"""What configurations call the number of frames."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Tokens of a clip: times, and patches along a side."""

    times: int
    side: int


def _videomae(model: Any, own: Grid, to: Grid) -> Changes:
    embeddings, patch = model.videomae.embeddings, model.config.patch_size
    positions = moved(embeddings.position_embeddings, (own.times, own.side), (to.times, to.side))
    size = (to.side * patch, to.side * patch)
    return (
        (embeddings, {"position_embeddings": positions}),
        (embeddings.patch_embeddings, {"image_size": size}),
    )


def _vivit(model: Any, own: Grid, to: Grid) -> Changes:
    embeddings, patch = model.vivit.embeddings, model.config.tubelet_size[1]
    positions = _behind_class(embeddings.position_embeddings, own, to)
    size = (to.side * patch, to.side * patch)
    return ((embeddings, {"position_embeddings": positions, "image_size": size}),)


def _timesformer(model: Any, own: Grid, to: Grid) -> Changes:
    """Its positions in space and in time lie apart, and its blocks look up the clip's shape."""
    embeddings, config = model.timesformer.embeddings, model.config
    space = _behind_class(embeddings.position_embeddings, Grid(1, own.side), Grid(1, to.side))
    values = {"position_embeddings": space}
    if hasattr(embeddings, "time_embeddings"):
        times = moved(embeddings.time_embeddings, (own.times, 1), (to.times, 1))
        values["time_embeddings"] = nn.Parameter(times, False)
    shape = {"num_frames": to.times, "image_size": to.side * config.patch_size}
    return ((embeddings, values), (config, shape))


def _behind_class(table: Tensor, own: Grid, to: Grid) -> nn.Parameter:
    """The position of the class token as it is, and behind it those of the patches."""
    patches = moved(table[:, 1:], (own.times, own.side), (to.times, to.side))
    return nn.Parameter(torch.cat([table[:, :1], patches], 1), False)


@dataclass(frozen=True, slots=True)
class Kind:
    """How an architecture cuts clips into tokens, and how it is told of other clips than its own."""

    tubelet: Callable[[Any], tuple[int, int]]
    """Frames and pixels along a side that one token stands for, from the configuration."""
    changes: Callable[[Any, Grid, Grid], Changes]


KINDS: Mapping[str, Kind] = {
    "videomae": Kind(lambda config: (config.tubelet_size, config.patch_size), _videomae),
    "timesformer": Kind(lambda config: (1, config.patch_size), _timesformer),
    "vivit": Kind(lambda config: (config.tubelet_size[0], config.tubelet_size[1]), _vivit),
}
"""The architectures whose plans are tested. Any other runs in full alone, if its output can be read."""


def frames_of(config: Any, name: str) -> int:
    """Frames of a clip that the checkpoint was made for. Raises SetupError where it does not say."""
    count = next((found for key in COUNTS if (found := getattr(config, key, None))), None)
    if type(count) is not int or not 1 <= count <= 9999:
        raise SetupError(f"the configuration of {name} does not say how many frames a clip has")
    return count


class VideoClassifier(PretrainedRunner):
    """Names clips (T, S, S, 3), T the frames of the card."""

    def __init__(
        self,
        pretrained: Pretrained,
        precision: Precision = "fp32",
        device: str = "cpu",
        max_batch: int = 0,
        profile: Profile | None = None,
    ) -> None:
        config = pretrained.model.config
        self.kind = KINDS.get(config.model_type)
        self.tubelet = self.kind.tubelet(config) if self.kind else (1, pretrained.prepared.side)
        axes = Axes(
            step=self.tubelet[1] if self.kind else 0,
            patch=self.tubelet[1],
            blocks=getattr(config, "num_hidden_layers", 1),
            tubelet=self.tubelet[0] if self.kind else 0,
        )
        frames = frames_of(config, pretrained.name)
        super().__init__(pretrained, axes, frames, precision, device, max_batch, profile)

    def candidates(self) -> tuple[Plan, ...]:
        """Halves and quarters of the frames."""
        fewer = (self.frames // share for share in (2, 4) if self.axes.tubelet)
        texts = [f"frames:{count}" for count in fewer if count and count % self.axes.tubelet == 0]
        return (self.full, *(Plan.parse(text, self.full) for text in texts))

    def pixels(self, batch: Tensor, plan: Plan) -> Tensor:
        """(B, T, S, S, 3) uint8 to (B, t, 3, s, s): the frames in the middle of equal spans."""
        clips = batch[:, sampled_frames(batch.shape[1], plan.frames or self.frames)]
        frames = self.sized(clips.flatten(0, 1), plan.image_size)
        return frames.view(*clips.shape[:2], *frames.shape[1:])

    def shape(self, plan: Plan) -> tuple[int, ...]:
        return (plan.frames or self.frames, 3, plan.image_size, plan.image_size)

    def tokens(self, plan: Plan) -> int:
        grid = self._grid(plan.frames or self.frames, plan.image_size)
        return grid.times * grid.side**2

    def changes(self, model: Any, plan: Plan) -> Changes:
        if self.kind is None:
            return ()
        config = model.config
        size = config.image_size if isinstance(config.image_size, int) else config.image_size[0]
        own = self._grid(self.frames, size)
        to = self._grid(plan.frames or self.frames, plan.image_size)
        return self.kind.changes(model, own, to) if to != own else ()

    def _grid(self, frames: int, side: int) -> Grid:
        return Grid(frames // self.tubelet[0], side // self.tubelet[1])

    def accepts(self, out: Any) -> bool:
        logits = out.get("logits")
        return logits is not None and logits.shape == (1, len(self.pretrained.labels))

    def results(self, out: Any, plan: Plan) -> Sequence[Result | Exception]:
        scores = out["logits"].float().softmax(-1).cpu().numpy()
        seen = tuple(sampled_frames(self.frames, plan.frames or self.frames))
        return [
            Result(row, self.tokens(plan), self.axes.blocks, self.gflops(plan), frames=seen)
            if np.isfinite(row).all()
            else RunFailed("the model's scores for this clip are not finite")
            for row in scores
        ]
