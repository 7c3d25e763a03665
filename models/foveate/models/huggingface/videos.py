"""Video classification with transformers: VideoMAE, TimeSformer, ViViT, and models with such outputs."""

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
from foveate.models.huggingface.axes import Changes, PlanAxes, resize_positions
from foveate.models.huggingface.fetch import Pretrained
from foveate.models.huggingface.runner import PretrainedRunner

FRAME_KEYS = ("num_frames", "frames_per_clip")
MAX_FRAMES = 256
"""Most frames of a clip. The first run of a model reserves memory for so many."""
"""The names of the number of frames in configurations."""


@dataclass(frozen=True, slots=True)
class TokenGrid:
    """The tokens of a clip: a number of times, and of patches along a side."""

    times: int
    side: int


def _videomae(model: Any, own: TokenGrid, to: TokenGrid) -> Changes:
    """VideoMAE's changes for another grid than its own."""
    embeddings, patch = model.videomae.embeddings, model.config.patch_size
    positions = resize_positions(embeddings.position_embeddings, (own.times, own.side), (to.times, to.side))
    size = (to.side * patch, to.side * patch)
    return (
        (embeddings, {"position_embeddings": positions}),
        (embeddings.patch_embeddings, {"image_size": size}),
    )


def _vivit(model: Any, own: TokenGrid, to: TokenGrid) -> Changes:
    """ViViT's changes for another grid than its own."""
    embeddings, patch = model.vivit.embeddings, model.config.tubelet_size[1]
    positions = _resize_after_class(embeddings.position_embeddings, own, to)
    size = (to.side * patch, to.side * patch)
    return ((embeddings, {"position_embeddings": positions, "image_size": size}),)


def _timesformer(model: Any, own: TokenGrid, to: TokenGrid) -> Changes:
    """TimeSformer has separate positions in space and in time, and its blocks read the clip's shape."""
    embeddings, config = model.timesformer.embeddings, model.config
    space = _resize_after_class(embeddings.position_embeddings, TokenGrid(1, own.side), TokenGrid(1, to.side))
    values = {"position_embeddings": space}
    if hasattr(embeddings, "time_embeddings"):
        times = resize_positions(embeddings.time_embeddings, (own.times, 1), (to.times, 1))
        values["time_embeddings"] = nn.Parameter(times, False)
    shape = {"num_frames": to.times, "image_size": to.side * config.patch_size}
    return ((embeddings, values), (config, shape))


def _resize_after_class(table: Tensor, own: TokenGrid, to: TokenGrid) -> nn.Parameter:
    """The class token's position unchanged, and after it the resized positions of the patches."""
    patches = resize_positions(table[:, 1:], (own.times, own.side), (to.times, to.side))
    return nn.Parameter(torch.cat([table[:, :1], patches], 1), False)


@dataclass(frozen=True, slots=True)
class VideoArchitecture:
    """How an architecture divides clips into tokens, and how it is adapted to other clips than its own."""

    tubelet: Callable[[Any], tuple[int, int]]
    """From the configuration: frames, and pixels along a side, that one token represents."""
    changes: Callable[[Any, TokenGrid, TokenGrid], Changes]
    """The attributes of a model to change, given its own grid and another."""


ARCHITECTURES: Mapping[str, VideoArchitecture] = {
    "videomae": VideoArchitecture(lambda config: (config.tubelet_size, config.patch_size), _videomae),
    "timesformer": VideoArchitecture(lambda config: (1, config.patch_size), _timesformer),
    "vivit": VideoArchitecture(lambda config: (config.tubelet_size[0], config.tubelet_size[1]), _vivit),
}
"""The architectures whose plans are tested. Any other has the full plan alone, if its output can be read."""


def frames_of(config: Any, name: str) -> int:
    """Frames of the clips that the checkpoint takes. Raises SetupError where its configuration lacks them."""
    count = next((value for key in FRAME_KEYS if (value := getattr(config, key, None))), None)
    if type(count) is not int or not 1 <= count <= MAX_FRAMES:
        raise SetupError(
            f"the configuration of {name} does not say how many frames a clip has: a number from 1 to "
            f"{MAX_FRAMES}, as one of {', '.join(FRAME_KEYS)}"
        )
    return count


class PretrainedVideoClassifier(PretrainedRunner):
    """A model of transformers that classifies clips (T, S, S, 3), where T is the card's `frames`."""

    def __init__(
        self,
        pretrained: Pretrained,
        precision: Precision = "fp32",
        device: str = "cpu",
        max_batch: int = 0,
        profile: Profile | None = None,
    ) -> None:
        config = pretrained.model.config
        known = self.architecture = ARCHITECTURES.get(config.model_type)
        self.tubelet = known.tubelet(config) if known else (1, pretrained.preprocessing.side)
        axes = PlanAxes(
            step=self.tubelet[1] if known else 0,
            patch=self.tubelet[1],
            blocks=getattr(config, "num_hidden_layers", 1),
            tubelet=self.tubelet[0] if known else 0,
        )
        frames = frames_of(config, pretrained.name)
        super().__init__(pretrained, axes, frames, precision, device, max_batch, profile)

    def candidates(self) -> tuple[Plan, ...]:
        """Full, half of the frames and a quarter of them."""
        fewer = (self.frames // share for share in (2, 4) if self.axes.tubelet)
        texts = [f"frames:{count}" for count in fewer if count and count % self.axes.tubelet == 0]
        return (self.full, *(Plan.parse(text, self.full) for text in texts))

    def pixels(self, batch: Tensor, plan: Plan) -> Tensor:
        """(B, T, S, S, 3) uint8 to (B, t, 3, s, s), normalised: the frames in the middle of equal spans."""
        clips = batch[:, sampled_frames(batch.shape[1], plan.frames or self.frames)]
        frames = self.preprocess(clips.flatten(0, 1), plan.image_size)
        return frames.view(*clips.shape[:2], *frames.shape[1:])

    def shape(self, plan: Plan) -> tuple[int, ...]:
        """(t, 3, s, s)."""
        return (plan.frames or self.frames, 3, plan.image_size, plan.image_size)

    def tokens(self, plan: Plan) -> int:
        """Tokens of all frames together, without the class token."""
        grid = self._grid(plan.frames or self.frames, plan.image_size)
        return grid.times * grid.side**2

    def changes(self, model: Any, plan: Plan) -> Changes:
        """Position embeddings for the plan's grid; empty for the model's own grid."""
        if self.architecture is None:
            return ()
        config = model.config
        size = config.image_size if isinstance(config.image_size, int) else config.image_size[0]
        own = self._grid(self.frames, size)
        to = self._grid(plan.frames or self.frames, plan.image_size)
        return self.architecture.changes(model, own, to) if to != own else ()

    def _grid(self, frames: int, side: int) -> TokenGrid:
        return TokenGrid(frames // self.tubelet[0], side // self.tubelet[1])

    def accepts(self, out: Any) -> bool:
        """Class scores of one clip, as many as there are labels."""
        logits = out.get("logits")
        return logits is not None and logits.shape == (1, len(self.pretrained.labels))

    def results(self, out: Any, plan: Plan) -> Sequence[Result | Exception]:
        """One result per clip. A clip whose scores are not finite fails alone."""
        scores = out["logits"].float().softmax(-1).cpu().numpy()
        frames = tuple(sampled_frames(self.frames, plan.frames or self.frames))
        return [
            Result(row, self.tokens(plan), self.axes.blocks, self.gflops(plan), frames=frames)
            if np.isfinite(row).all()
            else RunFailed("the model's scores for this clip are not finite")
            for row in scores
        ]
