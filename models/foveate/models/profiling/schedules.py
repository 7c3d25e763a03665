"""Search a DiffRate schedule for a model: how many tokens each block keeps, at a given cost.

"DiffRate: Differentiable Compression Rate for Efficient Vision Transformers" (ICCV 2023) learns, in
sections 3.3 and 3.4, how likely each block is to keep each number of tokens, by gradients through masks
and over millions of pictures. With hundreds of pictures and minutes on a CPU that lost to keeping the
same fraction at every block as often as it won. So this search compares schedules of equal cost by what
they do to the answers: it starts with the even one and bends it at random, a (1+1) evolution strategy,
keeping every bend that is better beyond chance.
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

Batch = tuple[Tensor, Tensor | None]
"""Normalised images (B, 3, S, S), and their classes (B,) int64 where these are known."""

WAVES = (4, 2)
"""Cosine waves over depth that bend how fast tokens go, and which share of them is pruned. More would
fit the pictures at hand and no others."""
BETTER, WORSE = 2.0, 1.0
"""Standard errors, over the same pictures, by which a schedule must be better to be kept, and may be
worse before it is given up: among sixty tries some are one better by chance."""
ENOUGH = 64
"""Pictures after which a schedule may be given up."""
GROW, SHRINK = 1.3, 0.95
"""What a success and a failure do to the size of the bends: it holds at one success in six tries."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a search stands after a step."""

    step: int
    steps: int
    distance: float
    """Mean distance of the best schedule's answers so far from the wanted ones, in 0..1."""


def search(
    model: ElasticViT,
    batches: Sequence[Batch],
    target_gflops: float,
    steps: int = 60,
    seed: int = 0,
    watch: Callable[[Progress], None] = lambda _: None,
) -> Schedule:
    """The best schedule found for the model's own image size that costs at most `target_gflops`.

    Best is what answers most like the classes of the pictures, or like full where a batch comes without
    them; a few hundred pictures are enough. Each step tries one schedule, and the seed decides which.
    Raises BadPlan for a target out of reach.
    """
    generator = torch.Generator().manual_seed(seed)
    wanted = [(images, _wanted(model, images, classes)) for images, classes in batches]
    shape, size = torch.zeros(2, model.config.depth), 1.0
    best = _schedule(model, shape, target_gflops)
    distances = [_distances(model, batch, best) for batch in wanted]
    for step in range(1, steps + 1):
        bent = shape + size * _bend(model.config.depth, generator)
        schedule = _schedule(model, bent, target_gflops)
        found = _improved(model, wanted, schedule, distances)
        if found is None:
            size *= SHRINK
        else:
            shape, best, distances, size = bent, schedule, found, size * GROW
        watch(Progress(step, steps, float(torch.cat(distances).mean())))
    return best


def _bend(depth: int, generator: torch.Generator) -> Tensor:
    """What to add to a shape, (2, depth): waves of random heights.

    Speeds have no even part, which the target sets; shares have one.
    """
    place = (torch.arange(depth) + 0.5) * math.pi / depth
    heights = torch.randn(sum(WAVES), generator=generator)
    speed = sum(height * torch.cos(wave * place) for wave, height in enumerate(heights[: WAVES[0]], start=1))
    share = sum(height * torch.cos(wave * place) for wave, height in enumerate(heights[WAVES[0] :]))
    return torch.stack([0.6 * speed, 1.2 * share])


def _schedule(model: ElasticViT, shape: Tensor, target: float) -> Schedule:
    """shape: (2, depth), how fast tokens go, as a logarithm, and the logit of the share that is pruned."""
    speed, pruned = shape[0].exp(), shape[1].sigmoid()
    rates = torch.stack([speed * pruned, speed * (1 - pruned)], dim=1)
    return fit_schedule(model.config, rates.flatten().tolist(), target)


def _improved(
    model: ElasticViT,
    batches: Sequence[tuple[Tensor, Tensor]],
    schedule: Schedule,
    distances: Sequence[Tensor],
) -> list[Tensor] | None:
    """The schedule's distances where they are below these, picture by picture, by more than chance.

    A schedule that turns out worse is given up before it has seen all batches.
    """
    found: list[Tensor] = []
    for batch in batches:
        found.append(_distances(model, batch, schedule))
        change = torch.cat(found) - torch.cat(list(distances[: len(found)]))
        error = change.std(correction=0) / math.sqrt(len(change))
        if len(change) >= ENOUGH and change.mean() > WORSE * error:
            return None
    return found if change.mean() < -BETTER * error else None


def _distances(model: ElasticViT, batch: tuple[Tensor, Tensor], schedule: Schedule) -> Tensor:
    """Hellinger distance of each picture's answer from the wanted one: (B,), in 0..1.

    Cross-entropy would be ruled by the few pictures that go wrong, and takes four times as many pictures
    to tell two schedules apart.
    """
    images, wanted = batch
    found = _answers(model, images, from_schedule(schedule, model.config))
    apart: Tensor = torch.linalg.vector_norm(found.sqrt() - wanted.sqrt(), dim=-1)
    return apart / math.sqrt(2)


def _wanted(model: ElasticViT, images: Tensor, classes: Tensor | None) -> Tensor:
    """What to answer, as probabilities (B, C)."""
    if classes is None:
        return _answers(model, images, Identity())
    return F.one_hot(classes, model.config.classes).float()


@torch.inference_mode()
def _answers(model: ElasticViT, images: Tensor, reducer: Reducer) -> Tensor:
    out: TrunkOutput = model(images, ResolvedPlan(reducer, model.config.depth))
    logits: Tensor = out.logits.float()
    return logits.softmax(-1)
