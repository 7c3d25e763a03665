"""What the networks are trained on: one recipe is one way to draw a step's budget."""

import random
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.models.layers.reducer import Reducer
from foveate.models.layers.tokens import Assignment, Tokens
from foveate.models.reduction import create
from foveate.models.vit.vit import ElasticViT
from training.family import MEAN, STD
from training.loader import BACKGROUND, IGNORE, Batch

KEEP_RATES = (1.0, 0.9, 0.7, 0.5, 0.3)
TUNED_KEEP_RATES = (1.0, 1.0, 0.7, 0.5, 0.3, 0.2, 0.1)
INPUT_PATCHES = (49, 49, 64, 98)
SMALL_SIZES = (112, 112, 160)

Recipe = Callable[[ElasticViT, nn.Linear, Batch, float, random.Random], Tensor]
"""(model, head that names patches, batch, share of the run that is over, chance) to a loss."""


def normalise(images: Tensor) -> Tensor:
    """(B, H, W, 3) uint8 to (B, 3, H, W) float in -1..1."""
    return (images.permute(0, 3, 1, 2).float() / 255 - MEAN) / STD


def keep_some(tokens: Tokens, labels: Tensor, count: int) -> tuple[Tokens, Tensor]:
    """A random subset of `count` patches that favours the object, and their labels.

    Favouring it keeps the loss meaningful at a quarter of the tokens, where chance alone would
    often leave a small object out of the picture.
    """
    priority = torch.rand(labels.shape) + 0.55 * (labels != BACKGROUND)
    chosen = priority.topk(count, dim=1).indices
    prefix = torch.arange(tokens.prefix).expand(len(labels), -1)
    kept = torch.cat([prefix, chosen + tokens.prefix], dim=1)
    return tokens.apply(Assignment(kept)), labels.gather(1, chosen)


def run_blocks(model: ElasticViT, tokens: Tokens, reducer: Reducer) -> Tokens:
    """The trunk without its head: the losses look at every token."""
    for index, block in enumerate(model.blocks):
        tokens = block(tokens, reducer, index)
    return tokens.with_features(model.norm(tokens.x))


def token_targets(tokens: Tokens, labels: Tensor) -> Tensor:
    """Labels (B, P) moved onto the tokens that are left: (B, N), IGNORE for prefix and fused tokens."""
    target = torch.full(tokens.counts.shape, IGNORE)
    target = target.scatter(1, tokens.source.clamp(min=0), labels)
    target[:, : tokens.prefix] = IGNORE
    return target.masked_fill(tokens.counts != 1, IGNORE)


def named(
    model: ElasticViT, token_head: nn.Linear, tokens: Tokens, batch: Batch, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Class logits (B, C), and the loss of naming the picture and each patch that is left."""
    logits = model.head(tokens.x[:, 0]).float()
    loss = F.cross_entropy(logits, batch.labels, label_smoothing=0.1)
    targets = token_targets(tokens, labels)
    token_logits = token_head(tokens.x).float().flatten(0, 1)
    balance = torch.ones(BACKGROUND + 1)
    balance[BACKGROUND] = 0.2
    return logits, loss + F.cross_entropy(token_logits, targets.flatten(), balance, ignore_index=IGNORE)


def budgets(
    model: ElasticViT, token_head: nn.Linear, batch: Batch, progress: float, rng: random.Random
) -> Tensor:
    """From scratch, for every budget: a random subset of patches at first, random keep rates later."""
    tokens = model.embed(normalise(batch.images))
    labels = batch.patch_labels(model.config.image_size // model.config.patch_size)
    reducer = create("none", model)
    if rng.random() < min(0.9, max(0.0, (0.8 - progress) / 0.25)):
        tokens, labels = keep_some(tokens, labels, rng.choice(INPUT_PATCHES))
        tokens = Tokens.start(tokens.x, tokens.prefix)
    else:
        reducer = create(f"evit:{rng.choice(KEEP_RATES)}", model)
    return named(model, token_head, run_blocks(model, tokens, reducer), batch, labels)[1]


def plain(
    model: ElasticViT, token_head: nn.Linear, batch: Batch, progress: float, rng: random.Random
) -> Tensor:
    """From scratch, every patch through every block: what budget-aware training is compared with."""
    tokens = model.embed(normalise(batch.images))
    labels = batch.patch_labels(model.config.image_size // model.config.patch_size)
    return named(model, token_head, run_blocks(model, tokens, create("none", model)), batch, labels)[1]


def sizes(
    model: ElasticViT, token_head: nn.Linear, batch: Batch, progress: float, rng: random.Random
) -> Tensor:
    """After `budgets`: each picture at full and at a smaller size, which learns from the full one.

    "ResFormer: Scaling ViTs with Multi-Resolution Training" (CVPR 2023), section 3.1: the scale
    consistency loss. Each size draws its own keep rate.
    """
    total, teacher = torch.zeros(()), None
    for side in (model.config.image_size, rng.choice(SMALL_SIZES)):
        images = normalise(batch.images)
        if side != images.shape[-1]:
            images = F.interpolate(images, size=(side, side), mode="bicubic", antialias=True)
        reducer = create(f"evit:{rng.choice(TUNED_KEEP_RATES)}", model)
        out = run_blocks(model, model.embed(images), reducer)
        labels = batch.patch_labels(side // model.config.patch_size)
        logits, loss = named(model, token_head, out, batch, labels)
        total = total + loss
        if teacher is not None:
            total = total + F.kl_div(logits.log_softmax(1), teacher, reduction="batchmean")
        teacher = logits.detach().softmax(1)
    return total


RECIPES: dict[str, Recipe] = {"budgets": budgets, "plain": plain, "sizes": sizes}
