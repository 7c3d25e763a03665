"""Train a clip head on a finished trunk: `python -m training.clips --model vit-t`. The same command resumes.

As in "Optimizing ViViT Training", the spatial half is frozen and a small adapter reads it. The temporal half
starts from random weights: started from the trunk's last blocks, it overfitted. Each step draws a plan: a
number of frames, an image size, a reducer, a depth, a first glance, reused patches. So the head learns to
read the features of every plan.
"""

import argparse
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.core.plan import sampled_frames
from foveate.models import exits, reduction
from foveate.models.heads.clip import ClipHead, ClipSpec
from foveate.models.runners.frame_sampling import (
    FrameLoader,
    Glance,
    VideoExecutor,
    VideoPlan,
    clip_of,
    coarse_to_fine,
)
from foveate.models.vit.vit import ElasticViT, ResolvedPlan
from foveate.models.weights import hub
from training.fit import CHECK_EVERY, TrainingRun, fit
from training.images import normalise, resized
from training.motions import NAMES, MotionVideo
from training.optimisation import initialise
from training.streams import prefetched

FRAMES = (16, 16, 12, 8, 8, 8, 6, 4)
SIZES = (112, 112, 112, 96, 80)
REDUCERS = ("none", "none", "none", "evit:0.7", "evit:0.5", "tome:3")
DEPTHS = (12, 12, 12, 8, 6, 4)


@dataclass(frozen=True, slots=True)
class VideoBatch:
    """Training videos and their motions."""

    clips: Tensor
    """(B, T, S, S, 3) uint8."""
    motions: Tensor
    """(B,) int64."""


def video_frames(split: str, number: int, spec: ClipSpec) -> tuple[np.ndarray, int]:
    """The frames (T, S, S, 3) of a video, some with the artefacts of JPEG compression, and its motion."""
    rng = np.random.default_rng([number, 3])
    video = MotionVideo(split, number, spec.image_size)
    shift = rng.uniform(-0.2, 0.2, spec.frames)
    frames = [video.frame((i + 0.5 + shift[i]) / spec.frames)[0] for i in range(spec.frames)]
    if rng.random() < 0.6:
        quality = [int(cv2.IMWRITE_JPEG_QUALITY), int(rng.integers(35, 95))]
        encoded = [cv2.imencode(".jpg", frame, quality)[1] for frame in frames]
        frames = [np.asarray(cv2.imdecode(code, cv2.IMREAD_COLOR)) for code in encoded]
    return np.stack(frames), video.motion


def draw_batch(step: int, size: int, spec: ClipSpec, first: int = 0) -> VideoBatch:
    """The videos of a step. The step alone decides what they are. first: number of the first step's first."""
    numbers = range(first + step * size, first + (step + 1) * size)
    videos = [video_frames("train", number, spec) for number in numbers]
    return VideoBatch(
        torch.from_numpy(np.stack([frames for frames, _ in videos])),
        torch.tensor([motion for _, motion in videos]),
    )


def batches(start: int, size: int, spec: ClipSpec, first: int = 0) -> Iterator[VideoBatch]:
    """Endless batches of fresh videos from a step on, drawn a few batches ahead."""
    return prefetched(start, partial(draw_batch, size=size, spec=spec, first=first), ahead=4)


def frame_loader(clips: Tensor) -> FrameLoader:
    """The normalised frames of these clips (B, T, S, S, 3) at any size."""

    def load(rows: Tensor, frames: Tensor, side: int) -> Tensor:
        return resized(normalise(clips[rows, frames]), side)

    return load


def random_plan(rng: random.Random, model: ElasticViT, spec: ClipSpec) -> VideoPlan:
    """The plan of a training step."""
    frames, size, kind = rng.choice(FRAMES), rng.choice(SIZES), rng.random()
    if kind < 0.2:
        close = rng.choice([c for c in (2, 3, 4, 6, 8) if c < frames])
        share = rng.choice([1.0, 0.7, 0.5, 0.3])
        return VideoPlan(
            frames, size, resolved_plan(model, "none", model.config.depth), glance=Glance(close, share)
        )
    if kind < 0.4:
        depth = rng.choice(DEPTHS)
        share = rng.choice([0.6, 0.4, 0.25])
        return VideoPlan(frames, size, resolved_plan(model, "none", depth), reuse=share)
    return VideoPlan(frames, size, resolved_plan(model, rng.choice(REDUCERS), rng.choice(DEPTHS)))


def resolved_plan(model: ElasticViT, reducer: str, depth: int) -> ResolvedPlan:
    """The reducer and the depth of a plan, resolved for a model."""
    return ResolvedPlan(reduction.create(reducer, model), depth)


def loss_of(model: ElasticViT, batch: VideoBatch, rng: random.Random, spec: ClipSpec) -> Tensor:
    """The cross-entropy of the predictions after each frame; the last one has the largest weight."""
    plan = random_plan(rng, model, spec)
    executor = VideoExecutor(model, frame_loader(batch.clips), spec.frames)
    clips = len(batch.clips)
    if plan.glance is not None:
        results = executor(clips, plan)
        return prediction_loss(torch.stack([result.logits for result in results]), batch.motions)
    frames = sampled_frames(spec.frames, plan.frames)
    if rng.random() < 0.3:
        frames = [frame for stage in coarse_to_fine(frames) for frame in stage]
    state = executor.add_frames(executor.start(clips), frames, plan)
    return prediction_loss(executor.predict(state)[0], batch.motions)


def prediction_loss(logits: Tensor, motions: Tensor) -> Tensor:
    """The loss of logits (B, T, C) against motions (B,).

    The first frame has no weight: one frame shows no motion.
    """
    last = F.cross_entropy(logits[:, -1].float(), motions, label_smoothing=0.05)
    before = logits[:, 1:-1].float()
    if not before.shape[1]:
        return last
    return last + 0.4 * F.cross_entropy(before.flatten(0, 1), motions.repeat_interleave(before.shape[1]))


@torch.inference_mode()
def accuracy(model: ElasticViT, spec: ClipSpec, plan: VideoPlan, clips: Tensor, motions: Tensor) -> float:
    """Top-1 of a plan, 0 to 1: clips (N, T, S, S, 3), motions (N,)."""
    correct = 0
    for first in range(0, len(clips), 26):
        part = clips[first : first + 26]
        with torch.autocast("cpu", torch.bfloat16):
            results = VideoExecutor(model, frame_loader(part), spec.frames)(len(part), plan)
        predicted = torch.stack([r.logits[-1] for r in results]).argmax(1)
        correct += int((predicted == motions[first : first + 26]).sum())
    return correct / len(clips)


def logged_plans(model: ElasticViT, spec: ClipSpec) -> dict[str, VideoPlan]:
    """The plans whose accuracy the log shows."""
    full = VideoPlan(spec.frames, spec.image_size, resolved_plan(model, "none", model.config.depth))
    rule = exits.create("0.9")
    return {
        "full": full,
        "frames_8": VideoPlan(8, full.image_size, full.resolved),
        "frames_4": VideoPlan(4, full.image_size, full.resolved),
        "size_80": VideoPlan(full.frames, 80, full.resolved),
        "depth_6": VideoPlan(full.frames, full.image_size, resolved_plan(model, "none", 6)),
        "glance_4": VideoPlan(full.frames, full.image_size, full.resolved, glance=Glance(4, 0.5)),
        "glance_8": VideoPlan(full.frames, full.image_size, full.resolved, glance=Glance(8, 1.0)),
        "reuse_40": VideoPlan(full.frames, full.image_size, full.resolved, reuse=0.4),
        "exit_90": VideoPlan(full.frames, full.image_size, full.resolved, exit_rule=rule),
    }


def train(name: str, run: TrainingRun, batch_size: int, first: int = 0) -> None:
    """Train or resume. The run's folder gets the head and a log.

    name: a shipped model. Its clip head, if it has one, is trained further; otherwise a new head is trained.
    first: the number of the first video to train on.
    """
    cv2.setNumThreads(1)  # its threads would not survive the fork of the worker process
    torch.manual_seed(run.seed)
    model = hub.load(name).model.eval().requires_grad_(False)
    spec = ClipSpec(len(NAMES))
    if model.clip is None:
        model.clip = ClipHead(model.config, spec)
        initialise(model.clip)
    head = clip_of(model).requires_grad_(True)
    drawn = [video_frames("train", 2**42 + number, spec) for number in range(208)]
    clips = torch.from_numpy(np.stack([clip for clip, _ in drawn]))
    motions = torch.tensor([motion for _, motion in drawn])
    stream: Iterator[VideoBatch] | None = None

    def loss_at(step: int, rng: random.Random) -> Tensor:
        nonlocal stream
        if stream is None:
            stream = batches(step, batch_size, spec, first)
        return loss_of(model, next(stream), rng, spec)

    def accuracies() -> dict[str, float]:
        plans = logged_plans(model, spec)
        return {name: accuracy(model, spec, plan, clips, motions) for name, plan in plans.items()}

    fit(run, head, loss_at, accuracies)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", default="vit-t", help="a shipped model: a trunk, or a clip model to train further"
    )
    parser.add_argument("--run", type=Path, help="folder of the run; default: runs/TRUNK-clip")
    parser.add_argument("--steps", type=int, default=1300)
    parser.add_argument("--batch-size", type=int, default=26)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--first", type=int, default=0, help="number of the first video (%(default)s)")
    parser.add_argument("--check-every", type=int, default=CHECK_EVERY, help="steps between checkpoints")
    parser.add_argument("--threads", type=int, default=0, help="threads of torch; 0 for its default")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    folder = args.run or Path("runs") / f"{args.model.removesuffix('-clip')}-clip"
    run = TrainingRun(folder, "clip", args.steps, args.lr, args.seed, 0.05, check_every=args.check_every)
    train(args.model, run, args.batch_size, args.first)


if __name__ == "__main__":
    main()
