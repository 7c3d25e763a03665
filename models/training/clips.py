"""Train a clip head on a finished trunk: `python -m training.clips --model vit-t`. Run again, it resumes.

As in "Optimizing ViViT Training" the spatial half stays frozen and a small adapter reads it. The temporal
half starts from random weights, for started from the trunk's last blocks it learnt its clips by heart. Each
step watches its clips in its own way: so many frames, a size, a reducer, a depth, a glance first, patches
reused, so that the head reads whatever a plan leaves it.
"""

import argparse
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from foveate.core.plan import sampled_frames
from foveate.models import exits, reduction
from foveate.models.heads.clip import ClipHead, ClipSpec
from foveate.models.runners.frame_sampling import (
    FrameLoader,
    Glance,
    VideoExecutor,
    VideoPlan,
    coarse_to_fine,
)
from foveate.models.vit.vit import ElasticViT, ResolvedPlan
from foveate.models.weights import hub
from training.fit import Run, fit
from training.losses import normalise
from training.motions import NAMES, Film
from training.train import initialise

FRAMES = (16, 16, 12, 8, 8, 8, 6, 4)
SIZES = (112, 112, 112, 96, 80)
REDUCERS = ("none", "none", "none", "evit:0.7", "evit:0.5", "tome:3")
DEPTHS = (12, 12, 12, 8, 6, 4)


@dataclass(frozen=True, slots=True)
class Batch:
    """Training clips and their motions."""

    clips: Tensor
    """(B, T, S, S, 3) uint8."""
    motions: Tensor
    """(B,) int64."""


class Films(IterableDataset[Batch]):
    """Endless fresh films from a given step on; every step's films are fixed by its number alone."""

    def __init__(self, start: int, batch: int, spec: ClipSpec) -> None:
        self.start, self.batch, self.spec = start, batch, spec

    def __iter__(self) -> Iterator[Batch]:
        cv2.setNumThreads(1)
        step = self.start
        while True:
            numbers = range(step * self.batch, (step + 1) * self.batch)
            films = [filmed("train", number, self.spec) for number in numbers]
            yield Batch(
                torch.from_numpy(np.stack([clip for clip, _ in films])),
                torch.tensor([motion for _, motion in films]),
            )
            step += 1


def filmed(split: str, number: int, spec: ClipSpec) -> tuple[np.ndarray, int]:
    """A film as frames (T, S, S, 3), some of them as a camera's file would bring them, and its motion."""
    rng = np.random.default_rng([number, 3])
    film = Film(split, number, spec.image_size)
    shift = rng.uniform(-0.2, 0.2, spec.frames)
    frames = [film.frame((i + 0.5 + shift[i]) / spec.frames)[0] for i in range(spec.frames)]
    if rng.random() < 0.6:
        quality = [int(cv2.IMWRITE_JPEG_QUALITY), int(rng.integers(35, 95))]
        coded = [cv2.imencode(".jpg", frame, quality)[1] for frame in frames]
        frames = [np.asarray(cv2.imdecode(code, cv2.IMREAD_COLOR)) for code in coded]
    return np.stack(frames), film.motion


def batches(start: int, batch: int, spec: ClipSpec) -> Iterator[Batch]:
    """The stream through one worker process, a few batches ahead."""
    return iter(DataLoader(Films(start, batch, spec), batch_size=None, num_workers=1, prefetch_factor=4))


def seeing(clips: Tensor) -> FrameLoader:
    """Frames of these clips (B, T, S, S, 3) at any size."""

    def see(rows: Tensor, frames: Tensor, side: int) -> Tensor:
        images = normalise(clips[rows, frames])
        if side == images.shape[-1]:
            return images
        return F.interpolate(images, size=(side, side), mode="bicubic", antialias=True)

    return see


def way(rng: random.Random, model: ElasticViT, spec: ClipSpec) -> VideoPlan:
    """How this step's clips are watched."""
    frames, size, kind = rng.choice(FRAMES), rng.choice(SIZES), rng.random()
    if kind < 0.2:
        close = rng.choice([c for c in (2, 3, 4, 6, 8) if c < frames])
        share = rng.choice([1.0, 0.7, 0.5, 0.3])
        return VideoPlan(
            frames, size, steps_of(model, "none", model.config.depth), glance=Glance(close, share)
        )
    if kind < 0.4:
        depth = rng.choice(DEPTHS)
        share = rng.choice([0.6, 0.4, 0.25])
        return VideoPlan(frames, size, steps_of(model, "none", depth), reuse=share)
    return VideoPlan(frames, size, steps_of(model, rng.choice(REDUCERS), rng.choice(DEPTHS)))


def steps_of(model: ElasticViT, reducer: str, depth: int) -> ResolvedPlan:
    return ResolvedPlan(reduction.create(reducer, model), depth)


def loss_of(model: ElasticViT, batch: Batch, rng: random.Random, spec: ClipSpec) -> Tensor:
    """Cross-entropy of what is said after each frame, the last one's counting most."""
    look = way(rng, model, spec)
    watcher = VideoExecutor(model, seeing(batch.clips), spec.frames)
    clips = len(batch.clips)
    if look.glance is not None:
        return said_loss(torch.stack([w.logits for w in watcher(clips, look)]), batch.motions)
    frames = sampled_frames(spec.frames, look.frames)
    if rng.random() < 0.3:
        frames = [frame for stage in coarse_to_fine(frames) for frame in stage]
    seen = watcher.add_frames(watcher.start(clips), frames, look)
    return said_loss(watcher.predict(seen)[0], batch.motions)


def said_loss(logits: Tensor, motions: Tensor) -> Tensor:
    """logits: (B, n, C). What is said after one frame alone can be no more than a guess."""
    last = F.cross_entropy(logits[:, -1].float(), motions, label_smoothing=0.05)
    before = logits[:, 1:-1].float()
    if not before.shape[1]:
        return last
    return last + 0.4 * F.cross_entropy(before.flatten(0, 1), motions.repeat_interleave(before.shape[1]))


@torch.inference_mode()
def accuracy(model: ElasticViT, spec: ClipSpec, look: VideoPlan, clips: Tensor, motions: Tensor) -> float:
    """Top-1 under a way of watching."""
    right = 0
    for first in range(0, len(clips), 26):
        part = clips[first : first + 26]
        with torch.autocast("cpu", torch.bfloat16):
            watched = VideoExecutor(model, seeing(part), spec.frames)(len(part), look)
        named = torch.stack([w.logits[-1] for w in watched]).argmax(1)
        right += int((named == motions[first : first + 26]).sum())
    return right / len(clips)


def checks(model: ElasticViT, spec: ClipSpec) -> dict[str, VideoPlan]:
    """The ways of watching that the log tells of."""
    full = VideoPlan(spec.frames, spec.image_size, steps_of(model, "none", model.config.depth))
    rule = exits.create("0.9")
    return {
        "full": full,
        "frames_8": VideoPlan(8, full.image_size, full.resolved),
        "frames_4": VideoPlan(4, full.image_size, full.resolved),
        "size_80": VideoPlan(full.frames, 80, full.resolved),
        "depth_6": VideoPlan(full.frames, full.image_size, steps_of(model, "none", 6)),
        "glance_4": VideoPlan(full.frames, full.image_size, full.resolved, glance=Glance(4, 0.5)),
        "reuse_40": VideoPlan(full.frames, full.image_size, full.resolved, reuse=0.4),
        "exit_90": VideoPlan(full.frames, full.image_size, full.resolved, exit_rule=rule),
    }


def train(name: str, run: Run, batch_size: int) -> None:
    """Write the head to the run's folder. Resumes."""
    cv2.setNumThreads(1)  # its threads would not survive the fork of the process that draws films
    torch.manual_seed(run.seed)
    model = hub.load(name).model.eval().requires_grad_(False)
    spec = ClipSpec(len(NAMES))
    head = model.clip = ClipHead(model.config, spec)
    initialise(head)
    drawn = [filmed("train", 2**42 + number, spec) for number in range(208)]
    clips = torch.from_numpy(np.stack([clip for clip, _ in drawn]))
    motions = torch.tensor([motion for _, motion in drawn])
    stream: Iterator[Batch] | None = None

    def loss_at(step: int, rng: random.Random) -> Tensor:
        nonlocal stream
        if stream is None:
            stream = batches(step, batch_size, spec)
        return loss_of(model, next(stream), rng, spec)

    def told() -> dict[str, float]:
        return {
            text: accuracy(model, spec, look, clips, motions) for text, look in checks(model, spec).items()
        }

    fit(run, head, loss_at, told)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="vit-t", help="a shipped model, the trunk")
    parser.add_argument("--run", type=Path, help="folder of the run; runs/MODEL-clip unless told")
    parser.add_argument("--steps", type=int, default=1300)
    parser.add_argument("--batch-size", type=int, default=26)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    folder = args.run or Path("runs") / f"{args.model}-clip"
    train(args.model, Run(folder, "clip", args.steps, args.lr, args.seed, 0.05), args.batch_size)


if __name__ == "__main__":
    main()
