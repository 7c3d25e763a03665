"""Fine-tune the last blocks of the trunk for scenes of several objects: `python -m training.chat_trunk`.

The same command resumes. The shipped trunk saw one object a scene, in its own colours: its last features
name an object, but not one that is recoloured. Each patch learns the class, the colour and the centre of the
object that covers it. `--frozen` trains the three readings alone, on the shipped blocks: the baseline.
"""

import argparse
import random
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.models import reduction
from foveate.models.layers.tokens import Tokens
from foveate.models.vit.vit import ElasticViT
from foveate.models.weights import hub
from training.chat_cache import EARLY_BLOCK, FOLDER, TRUNK, SceneCache, read_cache
from training.fit import TrainingRun, fit
from training.labels import LABELS
from training.multi_scenes import NOTHING, PARTLY, PATCH, SIDE, TINTS
from training.optimisation import optimisers

BACKGROUND = len(LABELS)
NOT_TINTED = len(TINTS)
BACKGROUND_WEIGHT = 0.2
"""Of a patch that no object covers: four fifths of the patches are such."""
_TINT_NUMBERS = {name: number for number, name in enumerate(TINTS)}


@dataclass(frozen=True, slots=True)
class PatchTargets:
    """What each patch shows. -100 marks a patch that takes no part."""

    classes: Tensor
    """(B, 196) int64: a label, or BACKGROUND."""
    tints: Tensor
    """(B, 196) int64: a colour, or NOT_TINTED."""
    centres: Tensor
    """(B, 196, 2) float32: from the patch's centre to its object's, as shares of the image's side."""


def patch_targets(cache: SceneCache, numbers: list[int]) -> PatchTargets:
    """The targets of scenes."""
    grid = SIDE // PATCH
    rows, columns = np.mgrid[0:grid, 0:grid]
    own_centres = (np.stack([columns, rows], -1).reshape(-1, 2) + 0.5) / grid
    classes = np.full((len(numbers), grid * grid), -100)
    tints = np.full_like(classes, -100)
    centres = np.zeros((len(numbers), grid * grid, 2), np.float32)
    for row, number in enumerate(numbers):
        owners = cache.owners[number]
        classes[row, owners == NOTHING] = BACKGROUND
        for index, item in enumerate(cache.graphs[number]):
            covered = owners == index
            classes[row, covered] = item.label
            tints[row, covered] = NOT_TINTED if item.tint is None else _TINT_NUMBERS[item.tint]
            centres[row, covered] = np.array(item.centre) - own_centres[covered]
    assert PARTLY < NOTHING  # patches that an object covers in part keep -100
    return PatchTargets(torch.from_numpy(classes), torch.from_numpy(tints), torch.from_numpy(centres))


class LateBlocks(nn.Module):
    """The blocks after EARLY_BLOCK with the final norm, and three linear readings of each patch."""

    def __init__(self, trunk: ElasticViT) -> None:
        super().__init__()
        self.reducer = reduction.create("none", trunk)
        self.blocks = deepcopy(trunk.blocks[EARLY_BLOCK:])
        self.norm = deepcopy(trunk.norm)
        width = trunk.config.width
        self.classes = nn.Linear(width, len(LABELS) + 1)
        self.tints = nn.Linear(width, len(TINTS) + 1)
        self.centres = nn.Linear(width, 2)

    def features(self, tokens: Tensor) -> Tensor:
        """The patch features (B, 196, D) of tokens (B, 197, D) after block EARLY_BLOCK."""
        state = Tokens.start(tokens, 1, None)
        for index, block in enumerate(self.blocks):
            state = block(state, self.reducer, EARLY_BLOCK + index, 0)
        patches: Tensor = self.norm(state.x[:, 1:])
        return patches

    def loss(self, tokens: Tensor, targets: PatchTargets) -> Tensor:
        """The loss of a batch: cross-entropy of classes and colours, distance of centres."""
        features = self.features(tokens)
        weights = torch.ones(len(LABELS) + 1)
        weights[BACKGROUND] = BACKGROUND_WEIGHT
        classes = F.cross_entropy(self.classes(features).float().flatten(0, 1), targets.classes.flatten(), weights)
        tints = F.cross_entropy(self.tints(features).float().flatten(0, 1), targets.tints.flatten())
        covered = targets.tints >= 0
        centres = F.l1_loss(self.centres(features).float()[covered], targets.centres[covered])
        return classes + 0.5 * tints + 2 * centres


@torch.inference_mode()
def object_accuracy(model: LateBlocks, cache: SceneCache, scenes: int = 500) -> dict[str, float]:
    """Shares of objects whose patches together name the class and the colour, and the error of centres."""
    right: dict[str, list[float]] = {"class": [], "class_tinted": [], "class_small": [], "tint": [], "centre_error": []}
    for first in range(0, scenes, 50):
        numbers = list(range(first, first + 50))
        targets = patch_targets(cache, numbers)
        with torch.autocast("cpu", torch.bfloat16):
            features = model.features(cache.batch(numbers).bfloat16())
            classes, tints = model.classes(features).float(), model.tints(features).float()
            centres = model.centres(features).float()
        for row, number in enumerate(numbers):
            for index, item in enumerate(cache.graphs[number]):
                covered = torch.from_numpy(cache.owners[number] == index)
                if not covered.any():
                    continue
                named = float(classes[row, covered].mean(0).argmax() == item.label)
                right["class"].append(named)
                left, _, end, _ = item.box
                if end - left < 0.2 * SIDE:
                    right["class_small"].append(named)
                if item.tint is not None:
                    right["class_tinted"].append(named)
                    tint = int(tints[row, covered].mean(0)[:NOT_TINTED].argmax())
                    right["tint"].append(float(tint == _TINT_NUMBERS[item.tint]))
                error = (centres[row, covered] - targets.centres[row, covered]).abs().mean()
                right["centre_error"].append(float(error))
    return {name: float(np.mean(values)) for name, values in right.items()}


def train(run: TrainingRun, batch_size: int, frozen: bool, folder: Path) -> None:
    """Train or resume. The run's folder gets the blocks with their readings, and a log."""
    torch.manual_seed(run.seed)
    model = LateBlocks(hub.load(TRUNK).model)
    scenes, checked = read_cache("train", folder), read_cache("heldout", folder)
    if frozen:
        model.blocks.requires_grad_(False)

    def loss_at(_: int, rng: random.Random) -> Tensor:
        numbers = rng.sample(range(len(scenes)), batch_size)
        return model.loss(scenes.batch(numbers).bfloat16(), patch_targets(scenes, numbers))

    fit(run, model, loss_at, lambda: object_accuracy(model, checked), optimisers([model], run.lr))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, default=Path("runs/vit-t-chat"), help="folder of the run")
    parser.add_argument("--cache", type=Path, default=FOLDER, help="folder of training.chat_cache")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--frozen", action="store_true", help="the baseline: do not train the blocks")
    args = parser.parse_args()
    name = "trunk-frozen" if args.frozen else "trunk"
    run = TrainingRun(args.run, name, args.steps, args.lr, args.seed)
    train(run, args.batch_size, args.frozen, args.cache)


if __name__ == "__main__":
    main()
