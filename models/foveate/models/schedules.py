"""Search a DiffRate schedule for a model: how many tokens each block keeps, at a given cost.

"DiffRate: Differentiable Compression Rate for Efficient Vision Transformers" (ICCV 2023) learns, in
sections 3.3 and 3.4, how likely each block is to keep each number of tokens, by gradients through masks
and over millions of pictures. With hundreds of pictures and minutes on a CPU that lost to keeping the
same fraction at every block as often as it won. So this search compares schedules of equal cost by what
they do to the answers, and bends the even one step by step wherever that is better beyond chance.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.models.reduction import Reducer, Schedule
from foveate.models.reduction.diffrate import fitted, follow
from foveate.models.reduction.none import Nothing
from foveate.models.vit import ElasticViT, Steps

Batch = tuple[Tensor, Tensor | None]
"""Normalised images (B, 3, S, S), and their classes (B,) int64 where these are known."""

BENDS = (4, 2)
"""Waves over depth that bend how fast tokens go, and which share of them is pruned. More would fit the
pictures at hand and no others."""
CHANCE = 1.0
"""Standard errors by which losses on the same pictures must differ to count as different."""
ENOUGH = 64
"""Pictures after which a schedule may be given up."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a search stands after a step."""

    step: int
    steps: int
    loss: float
    """Mean cross-entropy of the best schedule so far."""


def search(
    model: ElasticViT,
    batches: Sequence[Batch],
    target_gflops: float,
    steps: int = 60,
    seed: int = 0,
    watch: Callable[[Progress], None] = lambda _: None,
) -> Schedule:
    """The best schedule found for the model's own image size that costs at most `target_gflops`.

    Best is the least cross-entropy on the batches, a few hundred pictures, with their classes, or with
    full's own answers where a batch comes without. Each step tries one schedule; the seed decides the
    order of the tries. Raises BadPlan for a target out of reach.
    """
    g = model.geometry
    wanted = [(images, _wanted(model, images, classes)) for images, classes in batches]
    bends = _bends(g.depth)
    sizes = torch.ones(len(bends))
    shape = torch.zeros(2, g.depth)
    best = _schedule(model, shape, target_gflops)
    losses = [_losses(model, batch, best) for batch in wanted]
    for step, turn in zip(range(1, steps + 1), _turns(len(bends), seed), strict=False):
        bent = shape + sizes[turn] * bends[turn]
        schedule = _schedule(model, bent, target_gflops)
        found = None if schedule == best else _improved(model, wanted, schedule, losses)
        if found is None:
            sizes[turn] /= 2
        else:
            shape, best, losses = bent, schedule, found
        watch(Progress(step, steps, float(torch.cat(losses).mean())))
    return best


def _bends(depth: int) -> Tensor:
    """What a step may add to a shape, (2 * sum(BENDS), 2, depth): cosine waves, each up and down.

    The even rate is not among them: the target sets it.
    """
    place = (torch.arange(depth) + 0.5) * math.pi / depth
    speeds = [torch.stack([torch.cos(wave * place), torch.zeros(depth)]) for wave in range(1, BENDS[0] + 1)]
    shares = [torch.stack([torch.zeros(depth), 2 * torch.cos(wave * place)]) for wave in range(BENDS[1])]
    up = torch.stack(speeds + shares)
    return torch.cat([up, -up])


def _turns(count: int, seed: int) -> Iterator[int]:
    """Each of `count` in every round, in an order of its own."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(count, generator=generator).tolist()


def _schedule(model: ElasticViT, shape: Tensor, target: float) -> Schedule:
    """shape: (2, depth), how fast tokens go, as a logarithm, and the logit of the share that is pruned."""
    speed, pruned = shape[0].exp(), shape[1].sigmoid()
    rates = torch.stack([speed * pruned, speed * (1 - pruned)], dim=1)
    return fitted(model.geometry, rates.flatten().tolist(), target)


def _improved(
    model: ElasticViT, batches: Sequence[tuple[Tensor, Tensor]], schedule: Schedule, losses: Sequence[Tensor]
) -> list[Tensor] | None:
    """The schedule's losses where they are below these, picture by picture, by more than chance.

    A schedule that is worse by as much is given up before it has seen all batches.
    """
    found: list[Tensor] = []
    for batch in batches:
        found.append(_losses(model, batch, schedule))
        change = torch.cat(found) - torch.cat(list(losses[: len(found)]))
        chance = CHANCE * change.std() / math.sqrt(len(change))
        if len(change) >= ENOUGH and change.mean() > chance:
            return None
    return found if change.mean() < -chance else None


def _losses(model: ElasticViT, batch: tuple[Tensor, Tensor], schedule: Schedule) -> Tensor:
    """Cross-entropy of each picture: (B,)."""
    images, wanted = batch
    return F.cross_entropy(_logits(model, images, follow(schedule, model.geometry)), wanted, reduction="none")


def _wanted(model: ElasticViT, images: Tensor, classes: Tensor | None) -> Tensor:
    return _logits(model, images, Nothing()).softmax(-1) if classes is None else classes


@torch.inference_mode()
def _logits(model: ElasticViT, images: Tensor, reducer: Reducer) -> Tensor:
    out = model(images, Steps(reducer, model.geometry.depth))
    logits: Tensor = out.logits
    return logits.float()
