"""The losses of the classifiers: a recipe draws the compute budget of each step."""

import random
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.models.layers.reducer import Reducer
from foveate.models.layers.tokens import Assignment, Tokens
from foveate.models.reduction import create
from foveate.models.vit.vit import ElasticViT
from training.batches import BACKGROUND, IGNORE, SceneBatch
from training.images import normalise, resized

KEEP_RATES = (1.0, 0.9, 0.7, 0.5, 0.3)
"""Keep rates of EViT to draw from; a rate that is listed twice is drawn twice as often."""
TUNED_KEEP_RATES = (1.0, 1.0, 0.7, 0.5, 0.3, 0.2, 0.1)
"""The same once the model is tuned."""
INPUT_PATCHES = (49, 49, 64, 98)
"""Numbers of patches to draw from, for steps that embed a random subset of the patches."""
SMALL_SIZES = (112, 112, 160)

Recipe = Callable[[ElasticViT, nn.Linear, SceneBatch, float, random.Random], Tensor]
"""The loss from the model, the head that classifies tokens, the batch, the share of the run that is done, and
the randomness of the step."""


def keep_some(tokens: Tokens, labels: Tensor, count: int) -> tuple[Tokens, Tensor]:
    """A random subset of `count` patches and their labels (B, count); patches of the object are favoured.

    With a quarter of the tokens, an unbiased subset would often miss a small object.
    """
    priority = torch.rand(labels.shape) + 0.55 * (labels != BACKGROUND)
    chosen = priority.topk(count, dim=1).indices
    prefix = torch.arange(tokens.prefix).expand(len(labels), -1)
    kept = torch.cat([prefix, chosen + tokens.prefix], dim=1)
    return tokens.apply(Assignment(kept)), labels.gather(1, chosen)


def run_blocks(model: ElasticViT, tokens: Tokens, reducer: Reducer) -> Tokens:
    """The normalised tokens after the last block: the losses need every token."""
    for index, block in enumerate(model.blocks):
        tokens = block(tokens, reducer, index)
    return tokens.with_features(model.norm(tokens.x))


def token_targets(tokens: Tokens, labels: Tensor) -> Tensor:
    """The label of each remaining token, from patch labels (B, P): (B, N). Prefix and fused ones: IGNORE."""
    target = torch.full(tokens.counts.shape, IGNORE)
    target = target.scatter(1, tokens.source.clamp(min=0), labels)
    target[:, : tokens.prefix] = IGNORE
    return target.masked_fill(tokens.counts != 1, IGNORE)


def classification_loss(
    model: ElasticViT, token_head: nn.Linear, tokens: Tokens, batch: SceneBatch, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Class logits (B, C), and the loss of classifying the image and each remaining token.

    labels: (B, P), those of the patches.
    """
    logits = model.head(tokens.x[:, 0]).float()
    loss = F.cross_entropy(logits, batch.labels, label_smoothing=0.1)
    targets = token_targets(tokens, labels)
    token_logits = token_head(tokens.x).float().flatten(0, 1)
    balance = torch.ones(BACKGROUND + 1)
    balance[BACKGROUND] = 0.2
    return logits, loss + F.cross_entropy(token_logits, targets.flatten(), balance, ignore_index=IGNORE)


def budgets(
    model: ElasticViT, token_head: nn.Linear, batch: SceneBatch, progress: float, rng: random.Random
) -> Tensor:
    """From random weights, for every budget: first random subsets of the patches, later random keep rates."""
    tokens = model.embed(normalise(batch.images))
    labels = batch.patch_labels(model.config.image_size // model.config.patch_size)
    reducer = create("none", model)
    if rng.random() < min(0.9, max(0.0, (0.8 - progress) / 0.25)):
        tokens, labels = keep_some(tokens, labels, rng.choice(INPUT_PATCHES))
        tokens = Tokens.start(tokens.x, tokens.prefix)
    else:
        reducer = create(f"evit:{rng.choice(KEEP_RATES)}", model)
    return classification_loss(model, token_head, run_blocks(model, tokens, reducer), batch, labels)[1]


def plain(
    model: ElasticViT, token_head: nn.Linear, batch: SceneBatch, progress: float, rng: random.Random
) -> Tensor:
    """From random weights, every patch through every block: the baseline of budget-aware training."""
    tokens = model.embed(normalise(batch.images))
    labels = batch.patch_labels(model.config.image_size // model.config.patch_size)
    return classification_loss(
        model, token_head, run_blocks(model, tokens, create("none", model)), batch, labels
    )[1]


def sizes(
    model: ElasticViT, token_head: nn.Linear, batch: SceneBatch, progress: float, rng: random.Random
) -> Tensor:
    """After `budgets`: each image at full size and at a smaller size, which learns from the full size.

    "ResFormer: Scaling ViTs with Multi-Resolution Training" (CVPR 2023), section 3.1: the scale
    consistency loss. Each size draws its own keep rate.
    """
    total, teacher = torch.zeros(()), None
    for side in (model.config.image_size, rng.choice(SMALL_SIZES)):
        images = resized(normalise(batch.images), side)
        reducer = create(f"evit:{rng.choice(TUNED_KEEP_RATES)}", model)
        out = run_blocks(model, model.embed(images), reducer)
        labels = batch.patch_labels(side // model.config.patch_size)
        logits, loss = classification_loss(model, token_head, out, batch, labels)
        total = total + loss
        if teacher is not None:
            total = total + F.kl_div(logits.log_softmax(1), teacher, reduction="batchmean")
        teacher = logits.detach().softmax(1)
    return total


RECIPES: dict[str, Recipe] = {"budgets": budgets, "plain": plain, "sizes": sizes}
