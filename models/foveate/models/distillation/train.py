"""Train what a checkpoint lacks, on images without labels: exit heads and gates, or patch readers."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from foveate.core.errors import SetupError
from foveate.models.distillation.exit_heads import default_exits, new_head
from foveate.models.distillation.fit import FitProgress, FitSettings, TrainingCheckpoint, fit
from foveate.models.distillation.gates import default_gates
from foveate.models.distillation.parts import Agreement, ExitHeads, PatchReaders, TokenGates, TrainablePart
from foveate.models.heads.gates import Gate
from foveate.models.profiling.dataset import DecodedDataset
from foveate.models.runners.image import TorchRunner
from foveate.models.vit.vit import ElasticViT
from foveate.models.weights.checkpoint import Checkpoint
from foveate.models.weights.trained_heads import TrainedHeads, save_heads

MIN_IMAGES = 50
"""Fewest images to train on. A tenth of them, five, is kept for the report."""
HELD_OUT = 0.1
"""Share of the images that is not trained on."""
MAX_STEPS, MAX_EPOCHS = 3000, 40
SMALLEST_CROP = 0.7
"""Side of the smallest crop that is trained on, as a share of the image's."""

ReportTraining = Callable[[str, FitProgress], None]
"""Called after each step with the name of the part and its progress."""


@dataclass(frozen=True, slots=True)
class HeadTrainingJob:
    """What to train, on what, and for how long."""

    checkpoint: Checkpoint
    """Without what is to be trained."""
    weights: str
    """Its digest."""
    images: DecodedDataset
    budget_s: float
    device: str = "cpu"
    half: bool = False
    """Whether autocast computes in bfloat16."""
    batch_size: int = 32
    seed: int = 0
    max_steps: int = MAX_STEPS


def partial_training(target: Path) -> Path:
    """The file that holds an unfinished training."""
    return target.with_name(target.name + ".partial")


def plan_heads(checkpoint: Checkpoint) -> TrainedHeads:
    """What would be trained for a checkpoint, without weights: what it lacks.

    Nothing in it means the patch readers of a dense head. Raises SetupError, one sentence, for a checkpoint
    that has all, and for one without a classifier.
    """
    config = checkpoint.config
    if checkpoint.clip is not None:
        raise SetupError(f"{checkpoint.name} classifies clips, which have an exit already: nothing to train")
    if checkpoint.dense is not None:
        if config.depth < 2:
            raise SetupError(f"{checkpoint.name} has one block: there is nothing to train before it")
        return TrainedHeads()
    if not config.classes:
        raise SetupError(f"{checkpoint.name} has no classifier, whose answers exits could learn")
    planned = TrainedHeads(
        () if checkpoint.exits else default_exits(config), () if checkpoint.gates else default_gates(config)
    )
    if not (planned.exits or planned.gates):
        raise SetupError(f"{checkpoint.name} has exit heads and gates already: there is nothing to train")
    return planned


def train_heads(
    job: HeadTrainingJob, target: Path, report: ReportTraining = lambda *_: None
) -> Sequence[Agreement]:
    """Train all that the checkpoint lacks, and write it to `target`. TARGET.partial holds it meanwhile.

    Returns how well each part agrees with full on images that were not trained on. Raises SetupError, one
    sentence, for too few images, and as `plan_heads` does.
    """
    planned = plan_heads(job.checkpoint)
    if len(job.images) < MIN_IMAGES:
        raise SetupError(
            f"{len(job.images)} readable image(s) in {job.images.dataset.name} are too few to train on: "
            f"give at least {MIN_IMAGES}"
        )
    torch.manual_seed(job.seed)
    prepared = _with_new_parts(job.checkpoint, planned)
    runner = TorchRunner(prepared, "fp32", job.device)
    model = runner.models[prepared.name].requires_grad_(False)
    parts = _parts(model, planned)
    pictures = _Pictures(runner, job)
    unfinished = partial_training(target)
    checkpoint = TrainingCheckpoint(unfinished, _identity(job))
    steps = max(1, min(job.max_steps, MAX_EPOCHS * -(-len(pictures.training) // job.batch_size)))
    agreements: list[Agreement] = []
    for part in parts:
        part.module.requires_grad_(True)
        settings = FitSettings(steps, job.budget_s / len(parts), part.lr, job.seed)

        def report_part(progress: FitProgress, name: str = part.name) -> None:
            report(name, progress)

        def loss_at(step: int, rng: random.Random, part: TrainablePart = part) -> Tensor:
            images = pictures.batch(step)
            with torch.autocast(images.device.type, torch.bfloat16, job.half):
                return part.loss(images, rng)

        fit(part.name, part.module, loss_at, settings, checkpoint, report_part)
        part.module.requires_grad_(False)
        agreements += part.finish(pictures.held_out())
    trained = ("exit_heads.",) * bool(planned.exits) + ("gates.",) * bool(planned.gates)
    readers = tuple(f"dense.readers.{block}." for block in range(prepared.config.depth - 1))
    names = trained or readers
    state = {name: value for name, value in model.state_dict().items() if name.startswith(names)}
    save_heads(target, replace(planned, state=state), job.weights)
    unfinished.unlink(missing_ok=True)
    return agreements


def _with_new_parts(checkpoint: Checkpoint, planned: TrainedHeads) -> Checkpoint:
    """The checkpoint with the new heads and gates at their initial weights."""
    state: dict[str, Tensor] = {}
    for spec in planned.exits:
        head = new_head(checkpoint.model, spec).state_dict()
        state |= {f"exit_heads.{spec.after}.{name}": value for name, value in head.items()}
    for after in planned.gates:
        gate = Gate(checkpoint.config.width).state_dict()
        state |= {f"gates.{after}.{name}": value for name, value in gate.items()}
    return replace(planned, state=state).attach(checkpoint, checkpoint.name)


def _parts(model: ElasticViT, planned: TrainedHeads) -> list[TrainablePart]:
    parts: list[TrainablePart] = []
    if planned.exits:
        parts.append(ExitHeads(model))
    if planned.gates:
        parts.append(TokenGates(model))
    return parts or [PatchReaders(model)]


def _identity(job: HeadTrainingJob) -> dict[str, str]:
    """What a training depends on: an unfinished one of another identity is not used."""
    pictures = job.images.dataset.digest()
    return {"weights": job.weights, "pictures": pictures, "seed": f"{job.seed}", "batch": f"{job.batch_size}"}


class _Pictures:
    """The images of a job as normalised batches: nine tenths to train on, a tenth to report on."""

    def __init__(self, runner: TorchRunner, job: HeadTrainingJob) -> None:
        self.runner, self.images = runner, job.images
        self.size, self.seed, self.side = job.batch_size, job.seed, runner.full.image_size
        order = np.random.default_rng(job.seed).permutation(len(job.images)).tolist()
        count = max(1, round(HELD_OUT * len(order)))
        self.testing, self.training = order[:count], order[count:]

    def batch(self, step: int) -> Tensor:
        """The images of a step, (B, 3, S, S): drawn by the seed, cropped and mirrored at random.

        The answers of full to these very images are the targets, so any change of an image is fair.
        """
        rng = np.random.default_rng((self.seed, step))
        chosen = [self.training[i] for i in rng.integers(len(self.training), size=self.size)]
        pixels = self.runner.stack(self.images.at(chosen), self.runner.full)
        if rng.random() < 0.5:
            pixels = pixels.flip(2)
        crop = int(rng.uniform(SMALLEST_CROP, 1) * self.side)
        top, left = rng.integers(self.side - crop + 1, size=2).tolist()
        if rng.random() < 0.5:
            pixels = pixels[:, top : top + crop, left : left + crop]
        return self.runner.preprocess(pixels, self.side)

    def held_out(self) -> Iterator[Tensor]:
        """The images that are not trained on, in batches."""
        for start in range(0, len(self.testing), self.size):
            chosen = self.images.at(self.testing[start : start + self.size])
            yield self.runner.preprocess(self.runner.stack(chosen, self.runner.full), self.side)
