"""A clip named: which of its frames are looked at, how closely, and when that is enough."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from foveate.core.plan import sampled_frames
from foveate.models.exits import ExitRule
from foveate.models.heads.clip import ClipHead, resample
from foveate.models.layers.tokens import Assignment
from foveate.models.reduction.none import Identity
from foveate.models.runners.dense import Reader, read
from foveate.models.runners.temporal_reuse import Memory, first_look, look_again, share_of
from foveate.models.vit.vit import ElasticViT, ResolvedPlan

See = Callable[[Tensor, Tensor, int], Tensor]
"""Clips (N,) and their frames (N,), int64, and a side: those pictures, normalised, (N, 3, side, side)."""


@dataclass(frozen=True, slots=True)
class VideoPlan:
    """A plan made concrete for clips."""

    frames: int
    size: int
    """Side of the frames in pixels."""
    steps: ResolvedPlan
    glance: tuple[int, float] | None = None
    """Frames that are looked at closely, and what share of their patches."""
    reuse: float = 1.0
    """Share of a frame's patches that are computed again."""
    enough: ExitRule | None = None
    """Tells when what was seen suffices."""


@dataclass(frozen=True, slots=True)
class VideoResult:
    """What a clip was found to show."""

    frames: tuple[int, ...]
    """Which of the clip's frames were seen, in order."""
    logits: Tensor
    """(n, C): what was said after each of them; the last is the answer."""
    spent: "FrameCost"


@dataclass(frozen=True, slots=True)
class FrameCost:
    """What one clip took, in frames."""

    whole: int
    """Went through the plan's trunk with all of their patches."""
    parts: int
    """Went through it with some of them."""
    glances: int
    """Were glanced at."""
    runs: tuple[int, ...]
    """Were read by the head, each time that it ran."""


@dataclass(frozen=True, slots=True)
class Seen:
    """The clips that are still watched, and what is known of them."""

    rows: Tensor
    """(B,) which clips these are."""
    at: tuple[int, ...]
    """Frames seen so far, in the order of seeing them."""
    regions: Tensor
    """(B, n, R, G, G) of those frames."""
    memory: Memory | None = None

    def only(self, index: Tensor) -> "Seen":
        memory = self.memory and self.memory.rows(index)
        return Seen(self.rows[index], self.at, self.regions[index], memory)


def stages(frames: list[int]) -> list[list[int]]:
    """From coarse to fine: a quarter of the frames spread over the clip, those in the middle between them,
    then the others."""
    parts = [frames[1::4] or frames[:1], frames[3::4], frames[::2]]
    seen: list[int] = []
    found = []
    for part in parts:
        new = [frame for frame in part if frame not in seen]
        seen += new
        found += [new] if new else []
    return found


class VideoExecutor:
    """Runs clips through a model's trunk and clip head."""

    def __init__(self, model: ElasticViT, see: See, total: int) -> None:
        """total: frames of each clip."""
        self.model, self.head, self.see, self.total = model, clip_of(model), see, total
        self.device = model.pos_embed.device

    def __call__(self, clips: int, look: VideoPlan) -> list[VideoResult]:
        """One answer a clip, in order."""
        found: dict[int, VideoResult] = {}
        frames = sampled_frames(self.total, look.frames)
        if look.glance is not None:
            self._glance_then_look(clips, frames, look, found)
        else:
            self._look(clips, frames, look, found)
        return [found[row] for row in range(clips)]

    def _look(self, clips: int, frames: list[int], look: VideoPlan, found: dict[int, VideoResult]) -> None:
        """Stage by stage, until what was seen suffices."""
        plan, runs = stages(frames) if look.enough else [frames], list[int]()
        seen = self.unseen(clips)
        for stage in plan:
            seen = self.further(seen, stage, look)
            leaves = torch.ones_like(seen.rows, dtype=torch.bool)
            if look.enough is not None and stage is not plan[-1]:
                said, _ = self.said(seen)
                runs.append(len(seen.at))
                leaves = look.enough(list(said.unbind(1)))
            parts = len(seen.at) - 1 if look.reuse < 1 else 0
            spent = FrameCost(len(seen.at) - parts, parts, 0, (*runs, len(seen.at)))
            self._settle(seen.only(leaves.nonzero()[:, 0]), found, spent)
            seen = seen.only((~leaves).nonzero()[:, 0])
            if not len(seen.rows):
                return

    def unseen(self, clips: int) -> Seen:
        """So many clips of which nothing is known yet."""
        return Seen(torch.arange(clips, device=self.device), (), torch.empty(0))

    def further(self, seen: Seen, stage: list[int], look: VideoPlan) -> Seen:
        """The same clips after more of their frames."""
        rows, memory, patch = seen.rows, seen.memory, self.model.config.patch_size
        pictures = self._pictures(rows, self._same(stage, len(rows)), look.size)

        def within(images: Tensor, kept: Tensor | None) -> Tensor:
            return self._canvas(images, look.steps, kept)

        if look.reuse >= 1:
            canvas = within(pictures.flatten(0, 1), None)
        else:
            canvases = []
            if memory is None:
                memory = first_look(within, pictures[:, 0], patch)
                canvases, pictures = [memory.canvas.unsqueeze(1)], pictures[:, 1:]
            if pictures.shape[1]:
                more, memory = look_again(within, pictures, look.reuse, patch, memory)
                canvases.append(more)
            canvas = torch.cat(canvases, 1).flatten(0, 1)
        regions = by_clip(self.head.pooled(canvas), len(rows))
        if seen.at:
            regions = torch.cat([seen.regions, regions], 1)
        return Seen(rows, (*seen.at, *stage), regions, memory)

    def _glance_then_look(
        self, clips: int, frames: list[int], look: VideoPlan, found: dict[int, VideoResult]
    ) -> None:
        """A cheap glance at all frames says which of them, and which parts of these, are worth a look.

        "AVGN: Audio-Visual Glance Network for Efficient Video Recognition" (ICCV 2023), section 3, without
        its sound: the temporal head's own attention is the salience of frames, and of regions it is how far
        they are from what they are on average over the clip.
        """
        count, share = look.glance or (0, 1.0)
        spec, rows = self.head.spec, self.unseen(clips).rows
        pictures = self._pictures(rows, self._same(frames, clips), spec.glance_size)
        shallow = replace(look.steps, reducer=Identity(), depth=min(spec.glance_depth, look.steps.depth))
        glanced = self._canvas(pictures.flatten(0, 1), shallow, None)
        regions, glanced = by_clip(self.head.pooled(glanced), clips), by_clip(glanced, clips)
        seen = Seen(rows, tuple(frames), regions)
        said, attention = self.said(seen)
        runs = (len(frames), len(frames))
        if look.enough is not None:
            leaves = look.enough(list(said.unbind(1)))
            self._settle(seen.only(leaves.nonzero()[:, 0]), found, FrameCost(0, 0, len(frames), runs))
            stay = (~leaves).nonzero()[:, 0]
            seen, attention, glanced = seen.only(stay), attention[stay], glanced[stay]
        if not len(seen.rows):
            return
        close = attention.topk(min(count, len(frames)), dim=1).indices.sort(dim=1).values
        merged = self._closely(seen, glanced, close, share, look)
        where = close[..., None, None, None].expand_as(merged)
        seen = replace(seen, regions=seen.regions.scatter(1, where, merged))
        looked = (close.shape[1], 0) if share >= 1 else (0, close.shape[1])
        self._settle(seen, found, FrameCost(*looked, len(frames), runs))

    def _closely(self, seen: Seen, glanced: Tensor, close: Tensor, share: float, look: VideoPlan) -> Tensor:
        """Regions (B, K, R, G, G) of the frames that deserve it: (B, K), positions among those glanced at."""
        clips = len(close)
        frames = torch.tensor(seen.at, device=close.device)[close]
        pictures = self._pictures(seen.rows, frames, look.size).flatten(0, 1)
        if share >= 1:
            return by_clip(self.head.pooled(self._canvas(pictures, look.steps, None)), clips)
        side = look.size // self.model.config.patch_size
        rough = round(glanced.shape[2] ** 0.5)
        moved = (glanced - glanced.mean(1, keepdim=True)).float().norm(dim=-1, keepdim=True)

        def spread(patches: Tensor) -> Tensor:
            """Of the close frames, from the grid of the glance to that of the look: (B * K, P, W)."""
            where = close[..., None, None].expand(-1, -1, *patches.shape[2:])
            square = patches.gather(1, where).flatten(0, 1).transpose(1, 2)
            square = square.reshape(*square.shape[:2], rough, rough)
            return resample(square, side).flatten(2).transpose(1, 2)

        kept = spread(moved)[..., 0].topk(share_of(side * side, share), dim=1).indices
        canvas = self._canvas(pictures, look.steps, kept)
        entered = torch.zeros(canvas.shape[:2], dtype=torch.bool, device=canvas.device).scatter(1, kept, True)
        merged = torch.where(entered.unsqueeze(-1), canvas, spread(glanced))
        return by_clip(self.head.pooled(merged), clips)

    def _pictures(self, rows: Tensor, frames: Tensor, side: int) -> Tensor:
        """Frames (B, n) of the clips (B,): (B, n, 3, side, side)."""
        clips = rows.unsqueeze(1).expand_as(frames)
        return by_clip(self.see(clips.flatten(), frames.flatten(), side), len(rows))

    def _canvas(self, images: Tensor, steps: ResolvedPlan, kept: Tensor | None) -> Tensor:
        return patch_features_of(self.model, self.head, images, steps, kept)

    def said(self, seen: Seen) -> tuple[Tensor, Tensor]:
        """What the head says after each frame, in the order of seeing them."""
        at = (self._same(seen.at, len(seen.rows)).float() + 0.5) / self.total
        said: tuple[Tensor, Tensor] = self.head(seen.regions, at)
        return said

    def _same(self, frames: Sequence[int], clips: int) -> Tensor:
        """The same frames of so many clips: (B, n)."""
        return torch.tensor(frames, device=self.device).expand(clips, -1)

    def _settle(self, seen: Seen, found: dict[int, VideoResult], spent: FrameCost) -> None:
        """These are done: their frames are brought into the order of time for a last word."""
        if not len(seen.rows):
            return
        order = sorted(range(len(seen.at)), key=seen.at.__getitem__)
        frames = tuple(seen.at[i] for i in order)
        logits, _ = self.said(replace(seen, at=frames, regions=seen.regions[:, order]))
        for row, said in zip(seen.rows.tolist(), logits.float(), strict=True):
            found[row] = VideoResult(frames, said, spent)


def patch_features_of(
    model: ElasticViT, head: Reader, images: Tensor, steps: ResolvedPlan, kept: Tensor | None
) -> Tensor:
    """What a head reads of each patch of images (N, 3, S, S): (N, P, R).

    kept: (N, K), the patches that enter the trunk, None for all; of the others nothing is known, and what
    is returned for them means nothing.
    """
    tokens = model.embed(images)
    if kept is not None:
        always = torch.arange(tokens.prefix, device=kept.device).expand(len(kept), -1)
        tokens = tokens.apply(Assignment(torch.cat([always, kept + tokens.prefix], 1)))
    return read(model, head, tokens, steps).patches


def by_clip(x: Tensor, clips: int) -> Tensor:
    """Frames of clips one after the other, (B * n, ...), to (B, n, ...)."""
    return x.reshape(clips, -1, *x.shape[1:])


def clip_of(model: ElasticViT) -> ClipHead:
    """The model's clip head, which it must have."""
    if model.clip is None:
        raise ValueError("this model names pictures and no clips")
    return model.clip
