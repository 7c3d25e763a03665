"""Train a dense head on a finished trunk: `python -m training.segment --model vit-t`.

The same command resumes. The trunk is frozen, so that the features of an image serve every task. Each step
draws a plan: an image size, a reducer, a depth, and for some images patches that leave early. So the head
learns to read the features of every plan.
"""

import argparse
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.core.outcome import Result
from foveate.models import reduction
from foveate.models.heads.dense import STRIDE, DenseHead, DenseSpec
from foveate.models.layers.tokens import Tokens
from foveate.models.profiling.evaluation import MeanIoU
from foveate.models.runners.dense import class_maps, dense_of, represented, segment
from foveate.models.vit.vit import ElasticViT, ResolvedPlan
from foveate.models.weights import hub
from training.fit import TrainingRun, fit
from training.images import normalise, resized
from training.labels import LABELS
from training.optimisation import initialise, initialise_convolutions
from training.scenes import SPLITS, draw
from training.streams import prefetched

OFFSET = 5_000_000
"""First step in the stream of scenes. Earlier runs did not use scenes from here on."""
SIZES = (224, 224, 224, 160, 112)
REDUCERS = ("none", "none", "none", "tome:8", "evit:0.7", "evit:0.5", "expedit:0.7")
MIN_DEPTH = 3
"""The fewest blocks after which the head reads an image."""
OBJECTS = (1, 1, 1, 2, 3)
"""Numbers of objects to draw from."""


@dataclass(frozen=True, slots=True)
class MaskBatch:
    """Training scenes with the class of each pixel."""

    images: Tensor
    """(B, H, W, 3) uint8."""
    classes: Tensor
    """(B, H, W) uint8: 0 for the background, else the label plus 1."""


def scene_with_classes(split: str, number: int, side: int = 224) -> tuple[np.ndarray, np.ndarray]:
    """A scene of one to three objects: the image (H, W, 3), and the class of each pixel (H, W)."""
    rng = np.random.default_rng([SPLITS[split], number, 1])  # differs from the scene's own randomness
    labels = rng.choice(len(LABELS), rng.choice(OBJECTS), replace=False).tolist()
    scene = draw(split, number, side, side, labels=labels)
    classes = np.zeros(scene.image.shape[:2], np.uint8)
    for item in scene.objects:
        classes[item.mask] = item.label + 1
    return scene.image, classes


def draw_batch(step: int, size: int) -> MaskBatch:
    """The scenes of a step. The step alone decides what they are."""
    scenes = [scene_with_classes("train", step * size + i) for i in range(size)]
    return MaskBatch(
        torch.from_numpy(np.stack([image for image, _ in scenes])),
        torch.from_numpy(np.stack([classes for _, classes in scenes])),
    )


def batches(start: int, size: int) -> Iterator[MaskBatch]:
    """Endless batches of fresh scenes from a step on, drawn a few batches ahead."""
    return prefetched(start, partial(draw_batch, size=size))


@torch.no_grad()
def block_outputs(trunk: ElasticViT, images: Tensor, resolved: ResolvedPlan) -> list[Tokens]:
    """The embedded tokens, then the tokens after each block."""
    outputs = [trunk.embed(images)]
    for index in range(resolved.depth):
        outputs.append(trunk.blocks[index](outputs[-1], resolved.reducer, index, resolved.heads))
    return outputs


def patch_classes(classes: Tensor, side: int) -> Tensor:
    """The class that covers most of each patch: (B, H, W) to (B, side * side) int64."""
    batch, height, _ = classes.shape
    patch = height // side
    pixels = classes.view(batch, side, patch, side, patch).transpose(2, 3).reshape(batch, side * side, -1)
    return pixels.long().mode(2).values


def loss_of(trunk: ElasticViT, batch: MaskBatch, rng: random.Random) -> Tensor:
    """The cross-entropy of pixels and of patches, under a random plan."""
    head = dense_of(trunk)
    images, classes = normalise(batch.images), batch.classes
    size = rng.choice(SIZES)
    if size != images.shape[-1]:
        images = resized(images, size)
        classes = F.interpolate(classes.unsqueeze(1), size=(size, size), mode="nearest-exact").squeeze(1)
    depth = trunk.config.depth
    reducer = reduction.create(rng.choice(REDUCERS), trunk)
    outputs = block_outputs(trunk, images, ResolvedPlan(reducer, depth))
    side = size // trunk.config.patch_size
    targets = patch_classes(classes, side)
    late = rng.choice([depth, depth, rng.randint(MIN_DEPTH, depth)])
    features = patch_features(head, outputs, late)
    loss = patch_loss(head, features, targets)
    if late > MIN_DEPTH and rng.random() < 0.5:  # some patches leave early
        early = rng.randint(MIN_DEPTH, late - 1)
        early_features = patch_features(head, outputs, early)
        loss = (loss + patch_loss(head, early_features, targets)) / 2
        leaves = torch.rand(features.shape[:2]) < torch.rand(len(features), 1)
        features = torch.where(leaves.unsqueeze(-1), early_features, features)
    scores = head.decode(features, head.detail(images)).float()
    # One pixel of each square, at a random position: over the steps, all pixels have equal weight.
    row, column = rng.randrange(STRIDE), rng.randrange(STRIDE)
    pixels = classes[:, row::STRIDE, column::STRIDE].long()
    return F.cross_entropy(scores, pixels, class_weights(head)) + 0.3 * loss


def class_weights(head: DenseHead) -> Tensor:
    """The weight of each class: less for the background, which is nine tenths of a scene."""
    weight = torch.ones(head.spec.classes)
    weight[0] = 0.4
    return weight


def patch_loss(head: DenseHead, features: Tensor, targets: Tensor) -> Tensor:
    """The cross-entropy of patch classes: features (B, P, W), targets (B, P)."""
    logits = head.classify_patches(features).float().flatten(0, 1)
    return F.cross_entropy(logits, targets.flatten(), class_weights(head))


def patch_features(head: DenseHead, outputs: list[Tokens], depth: int) -> Tensor:
    """The features (B, P, W) that the head reads after `depth` blocks, from `block_outputs`.

    A patch that a block dropped has the features of the block before.
    """
    last = outputs[depth]
    features = head.read(last.grid(), depth)
    missing = ~represented(last)
    for block in range(depth, 0, -1):
        before = outputs[block - 1]
        dropped = missing & represented(before)
        if dropped.any():
            features = torch.where(dropped.unsqueeze(-1), head.read(before.grid(), block - 1), features)
            missing = missing & ~dropped
    return features


@torch.inference_mode()
def mean_iou(model: ElasticViT, reducer: str, scenes: int = 208, size: int = 224, depth: int = 0) -> float:
    """Mean IoU over the classes, on training-split scenes that no run reaches. depth 0: all blocks."""
    resolved = ResolvedPlan(reduction.create(reducer, model), depth or model.config.depth)
    drawn = [scene_with_classes("train", 2**42 + number) for number in range(scenes)]
    evaluator = MeanIoU([classes for _, classes in drawn], dense_of(model).spec.classes)
    for first in range(0, scenes, 52):
        with torch.autocast("cpu", torch.bfloat16):
            images = normalise(torch.from_numpy(np.stack([image for image, _ in drawn[first : first + 52]])))
            images = resized(images, size)
            scores = segment(model, images, resolved)[0].float()
        evaluator.update(
            [Result(shares, 0, resolved.depth, 0.0, maps=maps) for shares, maps in class_maps(scores)]
        )
    return evaluator.result()[1] or 0.0


def train(name: str, run: TrainingRun, batch_size: int) -> None:
    """Train or resume. The run's folder gets the head and a log."""
    torch.manual_seed(run.seed)
    trunk = hub.load(name).model.eval().requires_grad_(False)
    head = trunk.dense = DenseHead(trunk.config, DenseSpec(len(LABELS) + 1))
    initialise(head)
    initialise_convolutions(head)
    stream: Iterator[MaskBatch] | None = None

    def loss_at(step: int, rng: random.Random) -> Tensor:
        nonlocal stream
        if stream is None:
            stream = batches(step + OFFSET, batch_size)
        return loss_of(trunk, next(stream), rng)

    def checks() -> dict[str, float]:
        shallow = 2 * trunk.config.depth // 3
        return {
            "miou": mean_iou(trunk, "none"),
            "miou_depth_8": mean_iou(trunk, "none", depth=shallow),
            "miou_size_112": mean_iou(trunk, "none", size=112),
        }

    fit(run, head, loss_at, checks)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="vit-t", help="a shipped model, the trunk")
    parser.add_argument("--run", type=Path, help="folder of the run; default: runs/MODEL-seg")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    folder = args.run or Path("runs") / f"{args.model}-seg"
    train(args.model, TrainingRun(folder, "dense", args.steps, args.lr, args.seed), args.batch_size)


if __name__ == "__main__":
    main()
