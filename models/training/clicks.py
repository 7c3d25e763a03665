"""Train a click head on a finished dense head: `python -m training.clicks`. The same command resumes.

Trunk and dense head are frozen. Each simulated click is in the largest error of the last prediction
("Reviving Iterative Training with Mask Guidance for Interactive Segmentation", section 3.3). Unlike in the
paper, the head does not get the last prediction: it gets the positions of the clicks only.
"""

import argparse
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.models import reduction
from foveate.models.heads.dense import DenseHead, DenseSpec
from foveate.models.heads.point_prompts import PointPromptHead, PointPromptSpec
from foveate.models.runners.dense import dense_of
from foveate.models.vit.vit import ElasticViT, ResolvedPlan
from foveate.models.weights import hub
from foveate.models.weights.checkpoint import Checkpoint
from training.fit import TrainingRun, fit
from training.images import normalise, resized
from training.labels import LABELS
from training.optimisation import initialise, initialise_convolutions
from training.scenes import SPLITS, draw
from training.segment import block_outputs, patch_features
from training.streams import prefetched

OFFSET = 9_000_000
"""First step in the stream of scenes. Earlier runs did not use scenes from here on."""
SIZES = (224, 224, 224, 160)
REDUCERS = ("none", "none", "none", "none", "evit:0.7", "tome:8")
OBJECTS = (1, 2, 2, 3, 3, 4)
MAX_TARGETS = 2
"""Target objects in a scene at most."""
MIN_VISIBLE_PIXELS = 100
"""Fewest visible pixels of a target object."""
MAX_TRAINING_CLICKS = 8
TARGET_IOU = 0.85
"""The IoU at which NoC@85 stops counting."""
MAX_EVALUATION_CLICKS = 10

ObjectMask = np.ndarray
"""(H, W) bool."""


@dataclass(frozen=True, slots=True)
class ClickBatch:
    """Training scenes and the target objects in them."""

    images: Tensor
    """(B, H, W, 3) uint8."""
    scene: Tensor
    """(T,) int64: the index of each target's scene."""
    masks: Tensor
    """(T, H, W) bool: the visible pixels of each target."""


def scenes_with_targets(split: str, numbers: Sequence[int], max_targets: int) -> ClickBatch:
    """Scenes by their numbers, with at most this number of target objects in each."""
    images, scene, masks = [], [], []
    for index, number in enumerate(numbers):
        image, objects = scene_with_objects(split, number)
        images.append(image)
        scene += [index] * len(objects[:max_targets])
        masks += objects[:max_targets]
    return ClickBatch(
        torch.from_numpy(np.stack(images)), torch.tensor(scene), torch.from_numpy(np.stack(masks))
    )


def scene_with_objects(split: str, number: int, side: int = 224) -> tuple[np.ndarray, list[ObjectMask]]:
    """A scene of one to four objects, and their masks in random order. Some scenes repeat one class."""
    rng = np.random.default_rng([SPLITS[split], number, 2])  # differs from the scene's own randomness
    one_class = bool(rng.random() < 0.3)
    labels = rng.choice(len(LABELS), rng.choice(OBJECTS), replace=False)
    if one_class:
        labels[1:] = labels[0]
    scene = draw(split, number, side, side, labels=labels.tolist())
    masks = [item.mask for item in scene.objects if item.mask.sum() >= MIN_VISIBLE_PIXELS]
    masks = masks or [scene.objects[-1].mask]  # nothing covers the last object
    return scene.image, [masks[i] for i in rng.permutation(len(masks))]


def draw_batch(step: int, size: int) -> ClickBatch:
    """The scenes of a step. The step alone decides what they are."""
    return scenes_with_targets("train", range(step * size, (step + 1) * size), MAX_TARGETS)


def batches(start: int, size: int) -> Iterator[ClickBatch]:
    """Endless batches of fresh scenes from a step on, drawn a few batches ahead."""
    return prefetched(start, partial(draw_batch, size=size))


@torch.no_grad()
def dense_features(
    trunk: ElasticViT, images: Tensor, reducer: str = "none", size: int = 224
) -> tuple[Tensor, Tensor]:
    """The coarse and fine feature maps of images (B, H, W, 3) uint8, rounded as in the feature cache."""
    images = resized(normalise(images), size)
    head, depth = dense_of(trunk), trunk.config.depth
    with torch.autocast("cpu", torch.bfloat16):
        outputs = block_outputs(trunk, images, ResolvedPlan(reduction.create(reducer, trunk), depth))
        coarse, fine = head.to_maps(patch_features(head, outputs, depth), head.detail(images))
    coarse, fine = (x.half().float().to(memory_format=torch.channels_last) for x in (coarse, fine))
    return coarse, fine


PickPixel = Callable[[np.ndarray], int]
"""Chooses a pixel from the distances (N,) of pixels to the border of the error."""


def next_click(predicted: ObjectMask, target: ObjectMask, pick: PickPixel) -> tuple[float, float, float]:
    """The next simulated click: x and y in 0..1, and 1 to add or 0 to remove.

    It is well inside the largest error, or on the object if there is no error.
    """
    missing, excess = _distance(target & ~predicted), _distance(predicted & ~target)
    sign = float(missing.max() >= excess.max())
    depth = missing if sign else excess
    if depth.max() == 0:
        depth = _distance(target)
    rows, columns = np.nonzero(depth >= depth.max() / 2)
    chosen = pick(depth[rows, columns])
    height, width = target.shape
    return (columns[chosen] + 0.5) / width, (rows[chosen] + 0.5) / height, sign


def _distance(region: ObjectMask) -> np.ndarray:
    """The distance (H, W) of each pixel to the border of the region or of the image, in pixels."""
    padded = np.pad(region, 1).astype(np.uint8)
    return cv2.distanceTransform(padded, cv2.DIST_L2, 3)[1:-1, 1:-1]


def farthest_pixel(distances: np.ndarray) -> int:
    """The pixel that is farthest from the border: a precise click."""
    return int(distances.argmax())


def add_clicks(points: Tensor, predicted: Tensor, masks: Tensor, pick: PickPixel) -> Tensor:
    """Points (T, N, 3) with one more for each target, from predictions and masks (T, H, W) bool."""
    clicks = [next_click(p, m, pick) for p, m in zip(predicted.numpy(), masks.numpy(), strict=True)]
    return torch.cat([points, torch.tensor(clicks, dtype=torch.float32)[:, None]], 1)


def logits_of(head: PointPromptHead, features: tuple[Tensor, Tensor], points: Tensor, side: int) -> Tensor:
    """The logits of each target's mask: (T, side, side)."""
    small = head(*features, points)
    return F.interpolate(small, size=(side, side), mode="bilinear", align_corners=False).squeeze(1)


def loss_of(trunk: ElasticViT, head: PointPromptHead, batch: ClickBatch, rng: random.Random) -> Tensor:
    """The loss after the first click, and after a random number of further clicks."""
    coarse, fine = dense_features(trunk, batch.images, rng.choice(REDUCERS), rng.choice(SIZES))
    features, side = (coarse[batch.scene], fine[batch.scene]), batch.masks.shape[-1]
    click_rng = np.random.default_rng(rng.getrandbits(32))

    def pick(distances: np.ndarray) -> int:
        return int(click_rng.integers(len(distances)))

    points, predicted = torch.zeros(len(batch.masks), 0, 3), torch.zeros_like(batch.masks)
    points = add_clicks(points, predicted, batch.masks, pick)
    first = logits_of(head, features, points, side)
    loss, predicted = mask_loss(first, batch.masks), first.detach() > 0
    for number in range(rng.randint(1, MAX_TRAINING_CLICKS - 1)):
        if number:
            with torch.no_grad():
                predicted = logits_of(head, features, points, side) > 0
        points = add_clicks(points, predicted, batch.masks, pick)
    return loss + mask_loss(logits_of(head, features, points, side), batch.masks)


def mask_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Cross-entropy plus 1 minus the Dice coefficient: logits and masks (T, H, W).

    Half of the cross-entropy gives object and background equal weight.
    """
    targets = masks.float()
    pixel_loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    share = targets.mean((1, 2), keepdim=True).clamp(0.01, 0.99)
    balanced = (pixel_loss * torch.where(masks, 0.5 / share, 0.5 / (1 - share))).mean((1, 2))
    probability = logits.sigmoid()
    dice = 2 * (probability * targets).sum((1, 2))
    dice = dice / (probability.sum((1, 2)) + targets.sum((1, 2)) + 1)
    return (0.5 * pixel_loss.mean((1, 2)) + 0.5 * balanced + 1 - dice).mean()


@torch.inference_mode()
def evaluate(
    trunk: ElasticViT, head: PointPromptHead, scenes: int = 104, reducer: str = "none", size: int = 224
) -> dict[str, float]:
    """Mean IoU after 1, 2, 3 and 5 clicks, and NoC@85.

    NoC@85 is the number of clicks until TARGET_IOU, at most MAX_EVALUATION_CLICKS. Each scene has one target;
    the scenes are of the training split, and no run reaches them.
    """
    ious: list[Tensor] = []
    for start in range(0, scenes, 26):
        numbers = range(2**42 + start, 2**42 + min(start + 26, scenes))
        batch = scenes_with_targets("train", numbers, 1)
        features = dense_features(trunk, batch.images, reducer, size)
        points, predicted = torch.zeros(len(batch.masks), 0, 3), torch.zeros_like(batch.masks)
        rounds = []
        for _ in range(MAX_EVALUATION_CLICKS):
            points = add_clicks(points, predicted, batch.masks, farthest_pixel)
            predicted = logits_of(head, features, points, batch.masks.shape[-1]) > 0
            intersection, union = predicted & batch.masks, predicted | batch.masks
            rounds.append(intersection.sum((1, 2)) / union.sum((1, 2)))
        ious.append(torch.stack(rounds, 1))
    iou = torch.cat(ious)  # (scenes, MAX_EVALUATION_CLICKS)
    reached = iou >= TARGET_IOU
    clicks = torch.where(reached.any(1), reached.int().argmax(1) + 1, MAX_EVALUATION_CLICKS).float().mean()
    after = {f"iou_{count}": round(iou[:, count - 1].mean().item(), 4) for count in (1, 2, 3, 5)}
    return after | {"noc_85": round(clicks.item(), 3)}


def segmenter(trunk: str, run: Path) -> Checkpoint:
    """The model whose features the click head reads: that of the run, or the shipped one."""
    if not (run / "dense.pt").exists():
        return hub.load(f"{trunk}-seg")
    checkpoint = hub.load(trunk)
    head = DenseHead(checkpoint.config, DenseSpec(len(LABELS) + 1))
    head.load_state_dict(torch.load(run / "dense.pt", weights_only=True)["head"])
    checkpoint.model.dense = head
    return checkpoint


def train(trunk: ElasticViT, run: TrainingRun, batch_size: int) -> None:
    """Train or resume. The run's folder gets the head and a log."""
    cv2.setNumThreads(1)  # its threads would not survive the fork of the worker process
    torch.manual_seed(run.seed)
    trunk.eval().requires_grad_(False)
    head = PointPromptHead(dense_of(trunk).spec, trunk.config.patch_size, PointPromptSpec())
    head.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    initialise(head)
    initialise_convolutions(head)
    stream: Iterator[ClickBatch] | None = None

    def loss_at(step: int, rng: random.Random) -> Tensor:
        nonlocal stream
        if stream is None:
            stream = batches(step + OFFSET, batch_size)
        return loss_of(trunk, head, next(stream), rng)

    fit(run, head, loss_at, lambda: evaluate(trunk, head))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trunk", default="vit-t", help="a shipped model")
    parser.add_argument("--run", type=Path, help="folder of the dense head's run; default: runs/TRUNK-seg")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    folder = args.run or Path("runs") / f"{args.trunk}-seg"
    run = TrainingRun(folder, "clicks", args.steps, args.lr, args.seed, half=False)
    train(segmenter(args.trunk, folder).model, run, args.batch_size)


if __name__ == "__main__":
    main()
