"""Train a click head on a finished dense head: `python -m training.clicks`. Run again, it resumes.

Trunk and dense head stay as they are. Clicks are simulated where the prediction so far is most wrong
("Reviving Iterative Training with Mask Guidance for Interactive Segmentation", section 3.3), but unlike
there no prediction is handed on to the next click: only where the clicks are.
"""

import argparse
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from foveate.models import reduction
from foveate.models.heads.dense import DenseHead, DenseSpec
from foveate.models.heads.point_prompts import PointPromptHead, PointPromptSpec
from foveate.models.runners.dense import dense_of
from foveate.models.vit.vit import ElasticViT, ResolvedPlan
from foveate.models.weights import hub
from foveate.models.weights.checkpoint import Checkpoint
from training.emoji import LABELS
from training.fit import Run, fit
from training.losses import normalise
from training.scenes import SPLITS, draw
from training.segment import settled, walk
from training.train import initialise

OFFSET = 9_000_000
"""First step in the stream of scenes: none of these were trained on before."""
SIZES = (224, 224, 224, 160)
REDUCERS = ("none", "none", "none", "none", "evit:0.7", "tome:8")
OBJECTS = (1, 2, 2, 3, 3, 4)
TARGETS = 2
"""Objects of a scene that are clicked at most."""
SMALLEST = 100
"""Pixels that must be seen of an object before anybody clicks it."""
MOST = 8
"""Clicks in a row."""
WANTED = 0.85
"""The IoU that NoC@85 counts clicks up to."""
LIMIT = 10
"""Clicks after which that is given up."""

Mask = np.ndarray
"""(H, W) bool."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Training scenes and objects in them."""

    images: Tensor
    """(B, H, W, 3) uint8."""
    scene: Tensor
    """(T,) int64: the scene that each target is in."""
    masks: Tensor
    """(T, H, W) bool: the pixels where it is seen."""


class Scenes(IterableDataset[Batch]):
    """Endless fresh scenes from a given step on; every step's scenes are fixed by its number alone."""

    def __init__(self, start: int, batch: int) -> None:
        self.start, self.batch = start, batch

    def __iter__(self) -> Iterator[Batch]:
        cv2.setNumThreads(1)
        step = self.start
        while True:
            yield batch_of("train", range(step * self.batch, (step + 1) * self.batch), TARGETS)
            step += 1


def batch_of(split: str, numbers: Sequence[int], most: int) -> Batch:
    """Scenes by their numbers, and at most so many objects in each."""
    images, scene, masks = [], [], []
    for index, number in enumerate(numbers):
        image, found = scene_with_objects(split, number)
        images.append(image)
        scene += [index] * len(found[:most])
        masks += found[:most]
    return Batch(torch.from_numpy(np.stack(images)), torch.tensor(scene), torch.from_numpy(np.stack(masks)))


def scene_with_objects(split: str, number: int, side: int = 224) -> tuple[np.ndarray, list[Mask]]:
    """A scene of one to four objects, some of one kind, and where each is seen, in an order of chance."""
    rng = np.random.default_rng([SPLITS[split], number, 2])  # not the scene's own, which places things
    alike = bool(rng.random() < 0.3)
    labels = rng.choice(len(LABELS), rng.choice(OBJECTS), replace=False)
    if alike:
        labels[1:] = labels[0]
    scene = draw(split, number, side, side, labels=labels.tolist())
    masks = [thing.mask for thing in scene.objects if thing.mask.sum() >= SMALLEST]
    masks = masks or [scene.objects[-1].mask]  # the last one drawn is covered by nothing
    return scene.image, [masks[i] for i in rng.permutation(len(masks))]


def batches(start: int, batch: int) -> Iterator[Batch]:
    """The stream through one worker process, a few batches ahead."""
    return iter(DataLoader(Scenes(start, batch), batch_size=None, num_workers=1, prefetch_factor=6))


@torch.no_grad()
def laid(trunk: ElasticViT, images: Tensor, reducer: str = "none", size: int = 224) -> tuple[Tensor, Tensor]:
    """Pictures (B, H, W, 3) uint8 to what the dense head lays out, in the precision in which it is kept."""
    images = normalise(images)
    if size != images.shape[-1]:
        images = F.interpolate(images, size=(size, size), mode="bicubic", antialias=True)
    head, depth = dense_of(trunk), trunk.config.depth
    with torch.autocast("cpu", torch.bfloat16):
        stages = walk(trunk, images, ResolvedPlan(reduction.create(reducer, trunk), depth))
        coarse, fine = head.to_maps(settled(head, stages, depth), head.detail(images))
    coarse, fine = (x.half().float().to(memory_format=torch.channels_last) for x in (coarse, fine))
    return coarse, fine


Pick = Callable[[np.ndarray], int]
"""Chooses one of some pixels, by how deep (N,) each lies in what is wrong."""


def next_click(found: Mask, wanted: Mask, pick: Pick) -> tuple[float, float, float]:
    """x and y in 0..1 and the sign of a click well inside the deepest region where the two differ; somewhere
    on the object where they agree."""
    missing, beyond = _depth(wanted & ~found), _depth(found & ~wanted)
    sign = float(missing.max() >= beyond.max())
    depth = missing if sign else beyond
    if depth.max() == 0:
        depth = _depth(wanted)
    rows, columns = np.nonzero(depth >= depth.max() / 2)
    chosen = pick(depth[rows, columns])
    height, width = wanted.shape
    return (columns[chosen] + 0.5) / width, (rows[chosen] + 0.5) / height, sign


def _depth(region: Mask) -> np.ndarray:
    """Pixels from each pixel of the region to where it ends; the picture's rim ends it too."""
    padded = np.pad(region, 1).astype(np.uint8)
    return cv2.distanceTransform(padded, cv2.DIST_L2, 3)[1:-1, 1:-1]


def deepest(depth: np.ndarray) -> int:
    """As someone clicks who aims well."""
    return int(depth.argmax())


def clicked(points: Tensor, found: Tensor, masks: Tensor, pick: Pick) -> Tensor:
    """Points (T, N, 3) with one more for each target, given what was found (T, H, W) bool."""
    more = [next_click(f, m, pick) for f, m in zip(found.numpy(), masks.numpy(), strict=True)]
    return torch.cat([points, torch.tensor(more, dtype=torch.float32)[:, None]], 1)


def logits_of(head: PointPromptHead, features: tuple[Tensor, Tensor], points: Tensor, side: int) -> Tensor:
    """(T, side, side)."""
    small = head(*features, points)
    return F.interpolate(small, size=(side, side), mode="bilinear", align_corners=False).squeeze(1)


def loss_of(trunk: ElasticViT, head: PointPromptHead, batch: Batch, rng: random.Random) -> Tensor:
    """Of the first click, and of a later one whose forerunners were placed where the head was wrong."""
    coarse, fine = laid(trunk, batch.images, rng.choice(REDUCERS), rng.choice(SIZES))
    features, side = (coarse[batch.scene], fine[batch.scene]), batch.masks.shape[-1]
    chance = np.random.default_rng(rng.getrandbits(32))

    def pick(depth: np.ndarray) -> int:
        return int(chance.integers(len(depth)))

    points, found = torch.zeros(len(batch.masks), 0, 3), torch.zeros_like(batch.masks)
    points = clicked(points, found, batch.masks, pick)
    first = logits_of(head, features, points, side)
    loss, found = outlined(first, batch.masks), first.detach() > 0
    for number in range(rng.randint(1, MOST - 1)):
        if number:
            with torch.no_grad():
                found = logits_of(head, features, points, side) > 0
        points = clicked(points, found, batch.masks, pick)
    return loss + outlined(logits_of(head, features, points, side), batch.masks)


def outlined(logits: Tensor, masks: Tensor) -> Tensor:
    """Cross-entropy, object and rest of the picture weighing alike, and one minus the Dice coefficient."""
    wanted = masks.float()
    each = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    share = wanted.mean((1, 2), keepdim=True).clamp(0.01, 0.99)
    balanced = (each * torch.where(masks, 0.5 / share, 0.5 / (1 - share))).mean((1, 2))
    likely = logits.sigmoid()
    overlap = 2 * (likely * wanted).sum((1, 2)) / (likely.sum((1, 2)) + wanted.sum((1, 2)) + 1)
    return (0.5 * each.mean((1, 2)) + 0.5 * balanced + 1 - overlap).mean()


@torch.inference_mode()
def evaluate(
    trunk: ElasticViT, head: PointPromptHead, scenes: int = 104, reducer: str = "none", size: int = 224
) -> dict[str, float]:
    """Mean IoU after so many clicks, and NoC@85: clicks until an IoU of WANTED, LIMIT where it never comes.
    One object a scene, on training-split scenes far past any that training reaches."""
    reached: list[Tensor] = []
    for start in range(0, scenes, 26):
        numbers = range(2**42 + start, 2**42 + min(start + 26, scenes))
        batch = batch_of("train", numbers, 1)
        features = laid(trunk, batch.images, reducer, size)
        points, found = torch.zeros(len(batch.masks), 0, 3), torch.zeros_like(batch.masks)
        rounds = []
        for _ in range(LIMIT):
            points = clicked(points, found, batch.masks, deepest)
            found = logits_of(head, features, points, batch.masks.shape[-1]) > 0
            rounds.append((found & batch.masks).sum((1, 2)) / (found | batch.masks).sum((1, 2)))
        reached.append(torch.stack(rounds, 1))
    iou = torch.cat(reached)  # (scenes, LIMIT)
    enough = iou >= WANTED
    needed = torch.where(enough.any(1), enough.int().argmax(1) + 1, LIMIT).float().mean()
    after = {f"iou_{count}": round(iou[:, count - 1].mean().item(), 4) for count in (1, 2, 3, 5)}
    return after | {"noc_85": round(needed.item(), 3)}


def segmenter(trunk: str, run: Path) -> Checkpoint:
    """The model whose features are read: the run's dense head on its trunk, or the shipped one."""
    if not (run / "dense.pt").exists():
        return hub.load(f"{trunk}-seg")
    found = hub.load(trunk)
    head = DenseHead(found.config, DenseSpec(len(LABELS) + 1))
    head.load_state_dict(torch.load(run / "dense.pt", weights_only=True)["head"])
    found.model.dense = head
    return found


def train(trunk: ElasticViT, run: Run, batch_size: int) -> None:
    """Write the head to the run's folder. Resumes."""
    cv2.setNumThreads(1)  # its threads would not survive the fork of the process that draws scenes
    torch.manual_seed(run.seed)
    trunk.eval().requires_grad_(False)
    head = PointPromptHead(dense_of(trunk).spec, trunk.config.patch_size, PointPromptSpec())
    head.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    initialise(head)
    for module in head.modules():
        if isinstance(module, nn.Conv2d):  # 0.02 is for wide linear maps; these read a few values
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
    stream: Iterator[Batch] | None = None

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
    parser.add_argument("--run", type=Path, help="folder of the dense head's run; runs/TRUNK-seg unless told")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    folder = args.run or Path("runs") / f"{args.trunk}-seg"
    run = Run(folder, "clicks", args.steps, args.lr, args.seed, half=False)
    train(segmenter(args.trunk, folder).model, run, args.batch_size)


if __name__ == "__main__":
    main()
