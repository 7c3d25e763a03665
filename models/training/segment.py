"""Train a dense head on a finished trunk: `python -m training.segment --model vit-t`. Run again, it resumes.

The trunk stays as it is, so that one picture's features serve every task. Each step draws its own way
through it: a size, a reducer, a depth for each picture, and for some pictures patches that left early, so
that the head reads every mixture that a plan can leave it.
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
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from foveate.core.outcome import Result
from foveate.models import reduction
from foveate.models.heads.dense import STRIDE, DenseHead, DenseSpec
from foveate.models.layers.tokens import Tokens
from foveate.models.profiling.evaluation import MeanIoU
from foveate.models.runners.dense import class_maps, dense_of, represented, segment
from foveate.models.vit.vit import ElasticViT, ResolvedPlan
from foveate.models.weights import hub
from training.emoji import LABELS
from training.fit import Run, fit
from training.losses import normalise
from training.scenes import SPLITS, draw
from training.train import initialise

OFFSET = 5_000_000
"""First step in the stream of scenes: none of these were trained on before."""
SIZES = (224, 224, 224, 160, 112)
REDUCERS = ("none", "none", "none", "tome:8", "evit:0.7", "evit:0.5", "expedit:0.7")
FIRST = 3
"""The first block after which a picture may be read."""
OBJECTS = (1, 1, 1, 2, 3)


@dataclass(frozen=True, slots=True)
class Batch:
    """Training scenes with the class of each pixel."""

    images: Tensor
    """(B, H, W, 3) uint8."""
    classes: Tensor
    """(B, H, W) uint8: 0 the background, else the label plus 1."""


class Scenes(IterableDataset[Batch]):
    """Endless fresh scenes from a given step on; every step's scenes are fixed by its number alone."""

    def __init__(self, start: int, batch: int) -> None:
        self.start, self.batch = start, batch

    def __iter__(self) -> Iterator[Batch]:
        cv2.setNumThreads(1)
        step = self.start
        while True:
            scenes = [labelled("train", step * self.batch + i) for i in range(self.batch)]
            yield Batch(
                torch.from_numpy(np.stack([image for image, _ in scenes])),
                torch.from_numpy(np.stack([classes for _, classes in scenes])),
            )
            step += 1


def labelled(split: str, number: int, side: int = 224) -> tuple[np.ndarray, np.ndarray]:
    """A scene of one to three objects: the picture, and the class of each pixel."""
    rng = np.random.default_rng([SPLITS[split], number, 1])  # not the scene's own, which places things
    labels = rng.choice(len(LABELS), rng.choice(OBJECTS), replace=False).tolist()
    scene = draw(split, number, side, side, labels=labels)
    classes = np.zeros(scene.image.shape[:2], np.uint8)
    for thing in scene.objects:
        classes[thing.mask] = thing.label + 1
    return scene.image, classes


def batches(start: int, batch: int) -> Iterator[Batch]:
    """The stream through one worker process, a few batches ahead."""
    return iter(DataLoader(Scenes(start, batch), batch_size=None, num_workers=1, prefetch_factor=6))


@torch.no_grad()
def walk(trunk: ElasticViT, images: Tensor, steps: ResolvedPlan) -> list[Tokens]:
    """The tokens after each block, the embedding first."""
    found = [trunk.embed(images)]
    for index in range(steps.depth):
        found.append(trunk.blocks[index](found[-1], steps.reducer, index, steps.heads))
    return found


def patch_classes(classes: Tensor, side: int) -> Tensor:
    """(B, H, W) to (B, side * side) int64: what covers most of each patch."""
    batch, height, _ = classes.shape
    patch = height // side
    cut = classes.view(batch, side, patch, side, patch).transpose(2, 3).reshape(batch, side * side, -1)
    return cut.long().mode(2).values


def loss_of(trunk: ElasticViT, batch: Batch, rng: random.Random) -> Tensor:
    """Cross-entropy of pixels and of patches for one way through the trunk."""
    head = dense_of(trunk)
    images, classes = normalise(batch.images), batch.classes
    size = rng.choice(SIZES)
    if size != images.shape[-1]:
        images = F.interpolate(images, size=(size, size), mode="bicubic", antialias=True)
        classes = F.interpolate(classes.unsqueeze(1), size=(size, size), mode="nearest-exact").squeeze(1)
    depth = trunk.config.depth
    reducer = reduction.create(rng.choice(REDUCERS), trunk)
    stages = walk(trunk, images, ResolvedPlan(reducer, depth))
    side = size // trunk.config.patch_size
    wanted = patch_classes(classes, side)
    late = rng.choice([depth, depth, rng.randint(FIRST, depth)])
    canvas = settled(head, stages, late)
    patch_loss = named(head, canvas, wanted)
    if late > FIRST and rng.random() < 0.5:  # some patches leave early
        early = rng.randint(FIRST, late - 1)
        before = settled(head, stages, early)
        patch_loss = (patch_loss + named(head, before, wanted)) / 2
        leaves = torch.rand(canvas.shape[:2]) < torch.rand(len(canvas), 1)
        canvas = torch.where(leaves.unsqueeze(-1), before, canvas)
    scores = head.decode(canvas, head.detail(images)).float()
    # One pixel of each square, another one every step: on average every pixel counts alike.
    row, column = rng.randrange(STRIDE), rng.randrange(STRIDE)
    pixels = classes[:, row::STRIDE, column::STRIDE].long()
    return F.cross_entropy(scores, pixels, balance(head)) + 0.3 * patch_loss


def balance(head: DenseHead) -> Tensor:
    """Nine tenths of a scene are background."""
    weight = torch.ones(head.spec.classes)
    weight[0] = 0.4
    return weight


def named(head: DenseHead, canvas: Tensor, wanted: Tensor) -> Tensor:
    return F.cross_entropy(
        head.classify_patches(canvas).float().flatten(0, 1), wanted.flatten(), balance(head)
    )


def settled(head: DenseHead, stages: list[Tokens], depth: int) -> Tensor:
    """The canvas of pictures that are read after `depth` blocks: patches that were dropped on the way are
    read as they came out of the block before."""
    last = stages[depth]
    canvas = head.read(last.grid(), depth)
    left = ~represented(last)
    for block in range(depth, 0, -1):
        before = stages[block - 1]
        gone = left & represented(before)
        if gone.any():
            canvas = torch.where(gone.unsqueeze(-1), head.read(before.grid(), block - 1), canvas)
            left = left & ~gone
    return canvas


@torch.inference_mode()
def mean_iou(model: ElasticViT, reducer: str, scenes: int = 208, size: int = 224, depth: int = 0) -> float:
    """Over classes, on training-split scenes far past any that training reaches."""
    steps = ResolvedPlan(reduction.create(reducer, model), depth or model.config.depth)
    drawn = [labelled("train", 2**42 + number) for number in range(scenes)]
    judge = MeanIoU([classes for _, classes in drawn], dense_of(model).spec.classes)
    for first in range(0, scenes, 52):
        with torch.autocast("cpu", torch.bfloat16):
            images = normalise(torch.from_numpy(np.stack([image for image, _ in drawn[first : first + 52]])))
            if size != images.shape[-1]:
                images = F.interpolate(images, size=(size, size), mode="bicubic", antialias=True)
            scores = segment(model, images, steps)[0].float()
        judge.look([Result(shares, 0, steps.depth, 0.0, maps=maps) for shares, maps in class_maps(scores)])
    return judge.done()[1] or 0.0


def train(name: str, run: Run, batch_size: int) -> None:
    """Write the head to the run's folder. Resumes."""
    torch.manual_seed(run.seed)
    trunk = hub.load(name).model.eval().requires_grad_(False)
    head = trunk.dense = DenseHead(trunk.config, DenseSpec(len(LABELS) + 1))
    initialise(head)
    for module in head.modules():
        if isinstance(module, nn.Conv2d):  # 0.02 is for wide linear maps; these read a few values
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
    stream: Iterator[Batch] | None = None

    def loss_at(step: int, rng: random.Random) -> Tensor:
        nonlocal stream
        if stream is None:
            stream = batches(step + OFFSET, batch_size)
        return loss_of(trunk, next(stream), rng)

    def told() -> dict[str, float]:
        shallow = 2 * trunk.config.depth // 3
        return {
            "miou": mean_iou(trunk, "none"),
            "miou_depth_8": mean_iou(trunk, "none", depth=shallow),
            "miou_size_112": mean_iou(trunk, "none", size=112),
        }

    fit(run, head, loss_at, told)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="vit-t", help="a shipped model, the trunk")
    parser.add_argument("--run", type=Path, help="folder of the run; runs/MODEL-seg unless told")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    folder = args.run or Path("runs") / f"{args.model}-seg"
    train(args.model, Run(folder, "dense", args.steps, args.lr, args.seed), args.batch_size)


if __name__ == "__main__":
    main()
