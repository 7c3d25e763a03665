"""Search a DiffRate schedule for a model: how many tokens each block keeps, at a given cost.

"DiffRate: Differentiable Compression Rate for Efficient Vision Transformers" (ICCV 2023), sections 3.3 and
3.4, learns the probability that a block keeps each number of tokens, by gradients through masks and over
millions of images. With hundreds of images and minutes on a CPU, that method lost to a uniform schedule as
often as it won. This search compares schedules of equal cost by their answers instead. It is a (1+1)
evolution strategy: it starts with the uniform schedule, changes it at random, and keeps each change that is
better beyond chance.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.models.layers.reducer import Reducer, Schedule
from foveate.models.reduction.diffrate import fit_schedule, from_schedule
from foveate.models.reduction.none import Identity
from foveate.models.vit.vit import ElasticViT, ResolvedPlan, TrunkOutput

SearchBatch = tuple[Tensor, Tensor | None]
"""Normalised images (B, 3, S, S), and their classes (B,) int64; None: not labelled."""

SPEED_WAVES, SHARE_WAVES = 4, 2
"""Cosine waves over depth that change how fast tokens are removed, and which share of them is pruned. With
more waves, the schedule would overfit the images of the search."""
BETTER, WORSE = 2.0, 1.0
"""Standard errors over the same images. A schedule is kept if it is better by BETTER of them, and given up if
it is worse by WORSE. Among sixty tries, some are better by one standard error by chance."""
MIN_IMAGES = 64
"""Images after which a schedule may be given up."""
GROW, SHRINK = 1.3, 0.95
"""Factors of the step size after a success and a failure. It stays level at one success in six tries."""


@dataclass(frozen=True, slots=True)
class SearchProgress:
    """The state of a search after a step."""

    step: int
    steps: int
    distance: float
    """Mean distance of the best schedule's answers from the target answers, 0 to 1."""


def search(
    model: ElasticViT,
    batches: Sequence[SearchBatch],
    target_gflops: float,
    steps: int = 60,
    seed: int = 0,
    report: Callable[[SearchProgress], None] = lambda _: None,
) -> Schedule:
    """Search the schedule at the model's own image size that costs at most `target_gflops`.

    The best schedule is the one whose answers are closest to the classes of the images, or to the answers
    of full for a batch without classes. A few hundred images are enough. Each step tries one schedule;
    `seed` makes the search repeatable. Raises BadPlan for a target out of reach.
    """
    generator = torch.Generator().manual_seed(seed)
    targets = [(images, _target(model, images, classes)) for images, classes in batches]
    shape, size = torch.zeros(2, model.config.depth), 1.0
    best = _schedule(model, shape, target_gflops)
    distances = [_distances(model, batch, best) for batch in targets]
    for step in range(1, steps + 1):
        changed_shape = shape + size * _change(model.config.depth, generator)
        schedule = _schedule(model, changed_shape, target_gflops)
        improved = _improved(model, targets, schedule, distances)
        if improved is None:
            size *= SHRINK
        else:
            shape, best, distances, size = changed_shape, schedule, improved, size * GROW
        report(SearchProgress(step, steps, float(torch.cat(distances).mean())))
    return best


def _change(depth: int, generator: torch.Generator) -> Tensor:
    """A random change of a shape, (2, depth): cosine waves of random heights.

    Speeds have no constant wave, because the target sets their mean; shares have one.
    """
    position = (torch.arange(depth) + 0.5) * math.pi / depth
    heights = torch.randn(SPEED_WAVES + SHARE_WAVES, generator=generator)
    speed = sum(
        height * torch.cos(wave * position) for wave, height in enumerate(heights[:SPEED_WAVES], start=1)
    )
    share = sum(height * torch.cos(wave * position) for wave, height in enumerate(heights[SPEED_WAVES:]))
    return torch.stack([0.6 * speed, 1.2 * share])


def _schedule(model: ElasticViT, shape: Tensor, target: float) -> Schedule:
    """The schedule of a shape (2, depth): log speed of removal, and logit of the share that is pruned."""
    speed, pruned = shape[0].exp(), shape[1].sigmoid()
    rates = torch.stack([speed * pruned, speed * (1 - pruned)], dim=1)
    return fit_schedule(model.config, rates.flatten().tolist(), target)


def _improved(
    model: ElasticViT,
    batches: Sequence[tuple[Tensor, Tensor]],
    schedule: Schedule,
    best: Sequence[Tensor],
) -> list[Tensor] | None:
    """The distances of a schedule if they are below those of the `best` one beyond chance, else None.

    The schedule is given up before the last batch if it is clearly worse.
    """
    distances: list[Tensor] = []
    for batch in batches:
        distances.append(_distances(model, batch, schedule))
        change = torch.cat(distances) - torch.cat(list(best[: len(distances)]))
        error = change.std(correction=0) / math.sqrt(len(change))
        if len(change) >= MIN_IMAGES and change.mean() > WORSE * error:
            return None
    return distances if change.mean() < -BETTER * error else None


def _distances(model: ElasticViT, batch: tuple[Tensor, Tensor], schedule: Schedule) -> Tensor:
    """Hellinger distance between the answer and the target answer of each image: (B,), 0 to 1.

    A few wrong images would dominate the cross-entropy, which needs four times as many images to tell two
    schedules apart.
    """
    images, target = batch
    probabilities = _probabilities(model, images, from_schedule(schedule, model.config))
    distance: Tensor = torch.linalg.vector_norm(probabilities.sqrt() - target.sqrt(), dim=-1)
    return distance / math.sqrt(2)


def _target(model: ElasticViT, images: Tensor, classes: Tensor | None) -> Tensor:
    """Target probabilities (B, C): the classes if they are known, else the answers of full."""
    if classes is None:
        return _probabilities(model, images, Identity())
    return F.one_hot(classes, model.config.classes).float()


@torch.inference_mode()
def _probabilities(model: ElasticViT, images: Tensor, reducer: Reducer) -> Tensor:
    out: TrunkOutput = model(images, ResolvedPlan(reducer, model.config.depth))
    logits: Tensor = out.logits.float()
    return logits.softmax(-1)
