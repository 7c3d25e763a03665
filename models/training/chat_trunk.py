"""Fine-tune the trunk for scenes of several objects: `python -m training.chat_trunk`.

The same command resumes. The shipped trunk saw one object a scene, larger and in its own colours: its
features hardly name an object of 34 pixels, or one that is recoloured. Each patch learns the class, the
colour and the centre of the object that covers it, whether the centre of an object lies in it, and the share
of an object that it is: so the decoder can count. The last blocks are trained as they are, the others by
low-rank changes of their matrices (LoRA, arXiv 2106.09685, section 4.1), which are small to ship.
For most of the run, half of the patches are left out of the forward, background first: that is twice as
fast. `--start` continues from the weights of another run; give it a `--seed` of its own for new scenes.
`--frozen` trains the readings alone, on the shipped trunk: the baseline.
"""

import argparse
import io
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils import parametrize

from foveate.models import reduction
from foveate.models.layers.tokens import Tokens, gather_tokens
from foveate.models.vit.vit import ElasticViT
from foveate.models.weights import hub
from training.fit import TrainingRun, fit
from training.images import normalise
from training.labels import LABELS
from training.multi_scenes import MOST_OBJECTS, NOTHING, PATCH, SIDE, TINTS, MultiScene, draw_multi
from training.streams import prefetched

TRUNK = "vit-t"
EARLY_BLOCK = 8
"""Blocks whose matrices change by low rank alone. Their output is the early part of the features."""
RANK = 16
BACKGROUND = len(LABELS)
NOT_TINTED = len(TINTS)
BACKGROUND_WEIGHT = 0.2
"""Of a patch that no object covers: four fifths of the patches are such."""
SIZES = (SIDE, SIDE, 160)
"""Sides of the images to draw from. Smaller ones are the cheapest way to spend less on a picture."""
KEPT = 96
"""Patches in the forward while background is left out."""
CENTRED_WEIGHT = 8.0
"""Of a patch with the centre of an object: one patch in eighty is such."""
SEED_SCENES = 2**32
"""The scenes that a seed can draw."""
FIRST_CHECK = 2**40
"""Number of the first scene of the checks, which no run reaches."""
GRID = SIDE // PATCH
TINT_NUMBERS = {name: number for number, name in enumerate(TINTS)}


@dataclass(frozen=True, slots=True)
class PatchBatch:
    """Scenes, and what each of their patches shows. -100 marks a patch that takes no part."""

    images: Tensor
    """(B, S, S, 3) uint8."""
    classes: Tensor
    """(B, P) int64: a label, or BACKGROUND."""
    tints: Tensor
    """(B, P) int64: a colour, or NOT_TINTED."""
    centres: Tensor
    """(B, P, 2) float32: from the patch's centre to its object's, as shares of the image's side."""
    centred: Tensor
    """(B, P) float32: 1 where the centre of an object lies in the patch, else 0."""
    owners: Tensor
    """(B, P) int64: as `MultiScene.owners_at`."""


def compressed(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Half of the images as a JPEG shows them, since most requests are such."""
    if rng.random() < 0.5:
        return image
    out = io.BytesIO()
    Image.fromarray(image).save(out, "JPEG", quality=int(rng.integers(70, 96)))
    return np.asarray(Image.open(out))


def patch_batch(scenes: list[MultiScene], images: list[np.ndarray], side: int = SIDE) -> PatchBatch:
    """The images, resized to a side, with the targets of their scenes.

    A patch that an object covers in part takes no part.
    """
    grid = side // PATCH
    rows, columns = np.mgrid[0:grid, 0:grid]
    own_centres = (np.stack([columns, rows], -1).reshape(-1, 2) + 0.5) / grid
    classes = np.full((len(scenes), grid * grid), -100)
    tints = np.full_like(classes, -100)
    centres = np.zeros((len(scenes), grid * grid, 2), np.float32)
    centred = np.zeros((len(scenes), grid * grid), np.float32)
    owners = np.stack([scene.owners_at(side) for scene in scenes]).astype(np.int64)
    for row, scene in enumerate(scenes):
        classes[row, owners[row] == NOTHING] = BACKGROUND
        for index, item in enumerate(scene.objects):
            covered = owners[row] == index
            classes[row, covered] = item.label
            tints[row, covered] = NOT_TINTED if item.tint is None else TINT_NUMBERS[item.tint]
            centres[row, covered] = np.array(item.centre) - own_centres[covered]
            x, y = item.centre
            centred[row, int(y * grid) * grid + int(x * grid)] = 1
    arrays = (np.stack([resized(image, side) for image in images]), classes, tints, centres, centred, owners)
    return PatchBatch(*map(torch.from_numpy, arrays))


def resized(image: np.ndarray, side: int) -> np.ndarray:
    """The image in another size, as a server resizes it."""
    if len(image) == side:
        return image
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC))


def draw_batch(step: int, size: int, seed: int, sides: Sequence[int] = SIZES) -> PatchBatch:
    """The scenes of a step, resized to one of the sides. The step and the seed alone decide both."""
    first = seed * SEED_SCENES + step * size
    scenes = [draw_multi("train", first + i) for i in range(size)]
    rng = np.random.default_rng([step, size, seed])
    images = [compressed(scene.image, rng) for scene in scenes]
    return patch_batch(scenes, images, int(rng.choice(sides)))


class LowRank(nn.Module):
    """A matrix plus a trained product of two thin ones."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(RANK, columns) * columns**-0.5)
        self.up = nn.Parameter(torch.zeros(rows, RANK))

    def forward(self, weight: Tensor) -> Tensor:
        """The changed matrix (rows, columns)."""
        return weight + self.up @ self.down


class MultiTrunk(nn.Module):
    """The trunk that is fine-tuned, and five linear readings of each patch."""

    def __init__(self, trunk: ElasticViT, *, frozen: bool = False) -> None:
        super().__init__()
        self.trunk = trunk.requires_grad_(False)
        self.reducer = reduction.create("none", trunk)
        if not frozen:
            for module in list(trunk.blocks[:EARLY_BLOCK].modules()):
                if isinstance(module, nn.Linear):
                    change = LowRank(module.out_features, module.in_features)
                    parametrize.register_parametrization(module, "weight", change)
            trunk.blocks[EARLY_BLOCK:].requires_grad_(True)
            trunk.norm.requires_grad_(True)
        width = trunk.config.width
        self.classes = nn.Linear(width, len(LABELS) + 1)
        self.tints = nn.Linear(width, len(TINTS) + 1)
        self.centres = nn.Linear(width, 2)
        self.centred = nn.Linear(width, 1)
        self.share = nn.Linear(width, 1)
        nn.init.constant_(self.share.bias, -5.0)

    def optimisers(self, lr: float) -> list[torch.optim.Optimizer]:
        """Muon for the matrices of the last blocks; AdamW for all other parameters."""
        matrices: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                late = name.startswith("trunk.blocks.") and "parametrizations" not in name
                (matrices if late and parameter.ndim == 2 else others).append(parameter)
        adam = torch.optim.AdamW(others, lr=lr, weight_decay=0.01, betas=(0.9, 0.98), fused=True)
        if not matrices:
            return [adam]
        muon = torch.optim.Muon(matrices, lr=lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
        return [muon, adam]

    def features(self, images: Tensor, kept: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Patch features after block EARLY_BLOCK and at the end, each (B, P, D).

        images: (B, H, W, 3) uint8. kept: (B, P) int64, the patches in the forward; None for all.
        """
        tokens = self.trunk.embed(normalise(images))
        if kept is not None:
            with_class_token = F.pad(kept + 1, (1, 0))
            tokens = Tokens.start(gather_tokens(tokens.x, with_class_token), 1)
        early = tokens
        with parametrize.cached():
            for index, block in enumerate(self.trunk.blocks):
                tokens = block(tokens, self.reducer, index, 0)
                if index + 1 == EARLY_BLOCK:
                    early = tokens
            return early.x[:, 1:], self.trunk.norm(tokens.x[:, 1:])

    def loss(self, batch: PatchBatch, kept: Tensor | None) -> Tensor:
        """The loss of a batch: cross-entropy of classes, colours and `centred`, distances of the others."""
        features = self.features(batch.images, kept)[1]
        classes, tints, centred, owners = batch.classes, batch.tints, batch.centred, batch.owners
        centres = batch.centres
        if kept is not None:
            classes, tints, centred, owners = (
                part.gather(1, kept) for part in (classes, tints, centred, owners)
            )
            centres = gather_tokens(centres, kept)
        weights = torch.ones(len(LABELS) + 1)
        weights[BACKGROUND] = BACKGROUND_WEIGHT
        named, coloured = self.classes(features).float(), self.tints(features).float()
        loss = F.cross_entropy(named.flatten(0, 1), classes.flatten(), weights)
        loss = loss + 0.5 * F.cross_entropy(coloured.flatten(0, 1), tints.flatten())
        middle = self.centred(features).float().squeeze(-1)
        positive = torch.tensor(CENTRED_WEIGHT)
        loss = loss + F.binary_cross_entropy_with_logits(middle, centred, pos_weight=positive)
        loss = loss + count_loss(F.softplus(self.share(features).float().squeeze(-1)), owners)
        covered = tints >= 0
        return loss + 2 * F.l1_loss(self.centres(features).float()[covered], centres[covered])


def count_loss(shares: Tensor, owners: Tensor) -> Tensor:
    """How far the shares (B, P) of each object, and of all together, are from their numbers.

    owners: (B, P) int64, as `MultiScene.owners`. The shares of an object's patches should add up to 1, those
    of other patches to 0: the sum over an image is its number of objects.
    """
    members = F.one_hot(owners.clamp(min=0), MOST_OBJECTS) * (owners >= 0)[..., None]
    present = members.any(1)
    sums = (shares[..., None] * members).sum(1)[present]
    total = F.smooth_l1_loss(shares.sum(1), present.sum(1).float())
    return total + F.smooth_l1_loss(sums, torch.ones_like(sums))


def kept_patches(classes: Tensor, rng: random.Random) -> Tensor:
    """KEPT of the patches (B, P) of each scene: (B, KEPT) int64 in order, objects before background."""
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    order = torch.rand(classes.shape, generator=generator) + (classes != BACKGROUND).float()
    return order.topk(KEPT, dim=1).indices.sort(dim=1).values


@torch.inference_mode()
def object_accuracy(model: MultiTrunk, scenes: list[MultiScene], side: int = SIDE) -> dict[str, float]:
    """Shares of objects whose patches together name the class and the colour, and the error of centres.

    side: pixels to which the images are resized. centred_f1: of the patches that hold an object's centre.
    count: the share of images whose number of objects is the rounded sum of the patches' shares.
    """
    names = ("class", "class_tinted", "class_small", "tint", "centre_error", "count")
    right: dict[str, list[float]] = {name: [] for name in names}
    hits = marked = 0.0
    for first in range(0, len(scenes), 50):
        part = scenes[first : first + 50]
        batch = patch_batch(part, [scene.image for scene in part], side)
        with torch.autocast("cpu", torch.bfloat16):
            features = model.features(batch.images)[1]
            classes, tints = model.classes(features).float(), model.tints(features).float()
            centres = model.centres(features).float()
            middle = (model.centred(features).float().squeeze(-1) > 0).float()
            totals = F.softplus(model.share(features).float().squeeze(-1)).sum(1).round().tolist()
        hits += (middle * batch.centred).sum().item()
        marked += (middle + batch.centred).sum().item()
        for row, scene in enumerate(part):
            right["count"].append(float(totals[row] == len(scene.objects)))
            for index, item in enumerate(scene.objects):
                covered = batch.owners[row] == index
                if not covered.any():
                    continue
                named = float(classes[row, covered].mean(0).argmax() == item.label)
                right["class"].append(named)
                left, top, end, bottom = item.box
                if max(end - left, bottom - top) < 0.2 * SIDE:
                    right["class_small"].append(named)
                if item.tint is not None:
                    right["class_tinted"].append(named)
                    tint = int(tints[row, covered].mean(0)[:NOT_TINTED].argmax())
                    right["tint"].append(float(tint == TINT_NUMBERS[item.tint]))
                error = (centres[row, covered] - batch.centres[row, covered]).abs().mean()
                right["centre_error"].append(float(error))
    scores = {name: float(np.mean(values)) for name, values in right.items()}
    return scores | {"centred_f1": 2 * hits / marked}


def train(
    run: TrainingRun, batch_size: int, full_share: float, *, frozen: bool, start: Path | None = None
) -> None:
    """Train or resume. The run's folder gets the trunk with its readings, and a log.

    full_share: the last part of the run, with all patches, 0 to 1.
    """
    cv2.setNumThreads(0)  # OpenCV's threads would not exist in the worker process, which then waits for them
    torch.manual_seed(run.seed)
    model = MultiTrunk(hub.load(TRUNK).model, frozen=frozen)
    if start is not None:
        model.load_state_dict(torch.load(start, weights_only=True)["head"])
    checked = [draw_multi("heldout", FIRST_CHECK + number) for number in range(400)]
    stream: Iterator[PatchBatch] | None = None

    def loss_at(step: int, rng: random.Random) -> Tensor:
        nonlocal stream
        if stream is None:
            stream = prefetched(step, partial(draw_batch, size=batch_size, seed=run.seed))
        batch = next(stream)
        full = step >= (1 - full_share) * run.steps
        return model.loss(batch, None if full else kept_patches(batch.classes, rng))

    def checks() -> dict[str, float]:
        small = min(SIZES)
        at_small = {
            f"{name}_{small}": value for name, value in object_accuracy(model, checked, small).items()
        }
        return object_accuracy(model, checked) | at_small

    fit(run, model, loss_at, checks, model.optimisers(run.lr))


def read_trunk(run: Path) -> MultiTrunk:
    """The trunk that a run wrote. Raises SystemExit where there is none."""
    path = run / "trunk.pt"
    if not path.exists():
        raise SystemExit(f"{path} is missing: python -m training.chat_trunk")
    model = MultiTrunk(hub.load(TRUNK).model)
    model.load_state_dict(torch.load(path, weights_only=True)["head"])
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, default=Path("runs/vit-t-chat"), help="folder of the run")
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--full-share", type=float, default=0.25, help="the last part, with all patches")
    parser.add_argument("--start", type=Path, help="TRUNK.pt of another run, whose weights to start from")
    parser.add_argument("--frozen", action="store_true", help="the baseline: do not train the blocks")
    args = parser.parse_args()
    name = "trunk-frozen" if args.frozen else "trunk"
    run = TrainingRun(args.run, name, args.steps, args.lr, args.seed)
    train(run, args.batch_size, args.full_share, frozen=args.frozen, start=args.start)


if __name__ == "__main__":
    main()
