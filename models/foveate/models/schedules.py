"""Search a DiffRate schedule for a model: how many tokens each block keeps, at a given cost.

"DiffRate: Differentiable Compression Rate for Efficient Vision Transformers" (ICCV 2023), sections 3.3
and 3.4. The weights stay as they are. What is learned is, for each block, how likely pruning and merging
are to keep each number of tokens; the expected numbers are what runs. Dropped tokens stay in the batch
behind a mask, through which the loss tells each probability what its tokens were worth.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.models.geometry import gmacs
from foveate.models.reduction import Schedule
from foveate.models.reduction.diffrate import decide, follow, uniform
from foveate.models.reduction.none import Nothing
from foveate.models.vit import ElasticViT, Steps

Batch = tuple[Tensor, Tensor | None]
"""Normalised images (B, 3, S, S), and their classes (B,) int64 where they are known."""

CANDIDATES = 49
"""Numbers of tokens to choose from at each block: every fourth of 196, as the authors have it."""
RATE = 0.1
"""Adam's first step size, which falls to a tenth along a cosine. The authors' 0.01 is for 15,000 steps."""
PENALTY = 100.0
"""Weight of the squared miss of the target, as a share of full compute: on DeiT-S, the authors' 5 for
GFLOPs."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a search stands after a step."""

    step: int
    steps: int
    loss: float
    """Cross-entropy on the step's batch."""
    gflops: float


def search(
    model: ElasticViT,
    batches: Sequence[Batch],
    target_gflops: float,
    steps: int = 100,
    seed: int = 0,
    watch: Callable[[Progress], None] = lambda _: None,
) -> Schedule:
    g = model.geometry
    labelled = [(images, _answers(model, images, labels)) for images, labels in batches]
    learned = _learn(model, labelled, target_gflops, steps, seed, watch)
    choices = (learned, uniform(g, target_gflops / _full(g)))
    return min(choices, key=lambda schedule: agreement_loss(model, labelled, schedule))


def _full(g):
    return gmacs(g, g.image_size, (g.patches(g.image_size) + g.prefix,) * g.depth)


@torch.no_grad()
def _answers(model: ElasticViT, images: Tensor, labels: Tensor | None) -> Tensor:
    """What the reduced model should say: (B, C) probabilities."""
    if labels is not None:
        return F.one_hot(labels, model.geometry.classes).float()
    return model(images, Steps(Nothing(), model.geometry.depth)).logits.softmax(-1)


@torch.no_grad()
def agreement_loss(model, batches, schedule):
    steps = Steps(follow(schedule, model.geometry), model.geometry.depth)
    return sum(float(F.cross_entropy(model(images, steps).logits, answers)) for images, answers in batches)


def _learn(model, batches, target, steps, seed, watch):
    g = model.geometry
    patches = g.patches(g.image_size)
    candidates = torch.arange(patches, 0, -max(patches // CANDIDATES, 1)).float()
    with torch.enable_grad():
        logits = _start(g, candidates, target).requires_grad_()
        adam = torch.optim.Adam([logits], RATE)
        order = torch.Generator().manual_seed(seed)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps, RATE / 10)
        for step in range(steps):
            if not step % len(batches):
                turn = torch.randperm(len(batches), generator=order).tolist()
            images, answers = batches[turn[step % len(batches)]]
            scores, kept = _simulate(model, images, candidates, logits)
            cost = _cost(g, kept)
            loss = F.cross_entropy(scores, answers)
            miss = (cost - target) / _full(g)
            (logits.grad,) = torch.autograd.grad(loss + PENALTY * miss**2, [logits])
            adam.step()
            schedule.step()
            watch(Progress(step + 1, steps, float(loss.detach()), float(cost.detach())))
    mean = (logits.detach().softmax(-1) * candidates).sum(-1)
    return fit(g, mean, target)


def _start(g, candidates, target):
    """Logits that expect the same fraction at each block."""
    patches = g.patches(g.image_size)
    half = torch.arange(0, 2 * g.depth).view(-1, 2) + 1
    shape = patches * 0.5 ** (half / g.depth)
    counts = torch.tensor(fit(g, shape, target)) - g.prefix
    # the flattest distribution with that mean
    low, high = torch.full(counts.shape, -50.0), torch.full(counts.shape, 50.0)
    x = candidates / patches
    for _ in range(50):
        tilt = (low + high) / 2
        mean = ((tilt.unsqueeze(-1) * x).softmax(-1) * candidates).sum(-1)
        low, high = torch.where(mean < counts, tilt, low), torch.where(mean < counts, high, tilt)
    return low.unsqueeze(-1) * x


def fit(g, counts, target):
    """Schedule near counts (depth, 2) patches at the target cost"""
    patches = g.patches(g.image_size)
    ratio = (counts / patches).clamp(max=1).flatten().tolist()

    def at(power):
        kept = accumulate((max(math.ceil(patches * r**power - 1e-6), 1) for r in ratio), min)
        kept = [g.prefix + c for c in kept]
        return tuple(zip(kept[::2], kept[1::2]))

    def cost(s):
        return gmacs(g, g.image_size, [m for _, m in s])

    low, high = 0.0, 64.0
    assert cost(at(high)) <= target
    for _ in range(50):
        mid = (low + high) / 2
        low, high = (low, mid) if cost(at(mid)) <= target else (mid, high)
    return at(high)


def _cost(g, kept):
    """kept (depth-1, 2): expected patches, gradient straight through ceil and min."""
    left = torch.tensor(float(g.patches(g.image_size)))
    after = []
    for prune, merge in kept:
        least = torch.minimum(torch.minimum(left, prune), merge).detach()
        left = least + (prune - prune.detach()) + (merge - merge.detach())
        after.append(left + g.prefix)
    return gmacs(g, g.image_size, cast("Sequence[float]", after))


def _simulate(model, images, candidates, logits):
    g = model.geometry
    tokens = model.embed(images)
    patches = len(tokens) - tokens.prefix
    p = logits.softmax(-1)
    mean = (p * candidates).sum(-1)
    kept = mean + (mean.ceil() - mean).detach()
    survive = p @ (candidates.unsqueeze(1) > torch.arange(patches)).float()  # (depth-1, 2, P)
    x, counts = tokens.x.detach(), tokens.counts
    mask = torch.ones(counts.shape)
    alive = patches
    for index, block in enumerate(model.blocks):
        weights = block.attn.ahead(block.norm1(x), counts.log())
        seen = mask.unsqueeze(1)
        seen = seen + (1 - seen) * torch.eye(len(tokens))
        weights = weights * seen.unsqueeze(1)
        weights = weights / weights.sum(-1, keepdim=True)
        x = x + block.ls1(block.attn.mix(block.norm1(x), weights))
        if True:
            importance = (
                weights[:, :, 0, g.prefix :].detach().mean(1).masked_fill(mask[:, g.prefix :] < 0.5, -1)
            )
            rank = importance.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
            prune = min(alive, int(kept[index, 0]))
            merge = min(prune, int(kept[index, 1]))
            d = decide(replace(tokens, x=x, counts=counts), importance, prune, merge)
            x = x.scatter(1, d.kept.unsqueeze(-1).expand(-1, -1, x.shape[-1]), d.mix(x))
            if d.counts is not None:
                counts = counts.scatter(1, d.kept, d.counts)
            for which, (n, before) in enumerate(((prune, alive), (merge, prune))):
                soft = survive[index, which][rank]
                hard = ((rank < n) | (rank >= before)).float()
                ste = hard + soft - soft.detach()
                mask = mask * F.pad(ste, (g.prefix, 0), value=1.0)
            alive = merge
        x = x + block.ls2(block.mlp(block.norm2(x)))
    return model.classify(replace(tokens, x=x, counts=counts * mask)), kept
