"""The losses of the classifiers: labels of patches and tokens, random subsets, and the recipes."""

import random
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from foveate.models.layers.config import ViTConfig
from foveate.models.layers.tokens import Tokens
from foveate.models.reduction import create
from foveate.models.vit.vit import ElasticViT
from training.batches import BACKGROUND, IGNORE, SceneBatch
from training.images import normalise, resized
from training.losses import RECIPES, keep_some, run_blocks, token_targets

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = ViTConfig(image_size=224, width=24, depth=2, heads=2, classes=BACKGROUND)


def batch() -> SceneBatch:
    """Two images of noise, whose objects cover the left half and a corner."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 224, 224, 3), dtype=torch.uint8, generator=generator)
    masks = torch.zeros(2, 224, 224, dtype=torch.bool)
    masks[0, :, :112] = True
    masks[1, :20, :20] = True
    return SceneBatch(images, torch.tensor([3, 7]), masks)


def model() -> ElasticViT:
    torch.manual_seed(0)
    return ElasticViT(CONFIG)


def test_a_patch_has_the_class_the_background_or_no_label() -> None:
    left, corner = batch().patch_labels(14).view(2, 14, 14)
    assert (left[:, :7] == 3).all() and (left[:, 7:] == BACKGROUND).all()
    assert corner[0, 0] == 7
    assert (corner[0, 1], corner[1, 1]) == (IGNORE, IGNORE), "less than a third of the patch is covered"
    assert (corner[2:] == BACKGROUND).all()


def test_images_are_normalised_and_resized() -> None:
    extremes = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 4, 4, 3)
    assert normalise(extremes)[:, 0, 0, 0].tolist() == [-1, 1]
    pixels = normalise(batch().images)
    assert resized(pixels, 224) is pixels
    assert resized(pixels, 112).shape == (2, 3, 112, 112)


def test_a_random_subset_favours_the_object() -> None:
    torch.manual_seed(0)
    labels = batch().patch_labels(14)
    tokens = model().embed(normalise(batch().images))
    kept, kept_labels = keep_some(tokens, labels, 49)
    assert kept.x.shape[1] == kept.prefix + 49
    assert torch.equal(token_targets(kept, labels)[:, kept.prefix :], kept_labels)
    assert (kept_labels[0] == 3).float().mean() > 0.7, "half of the patches are of the object"


def test_prefix_and_fused_tokens_have_no_target() -> None:
    network, labels = model(), batch().patch_labels(14)
    tokens = network.embed(normalise(batch().images))
    whole = token_targets(run_blocks(network, tokens, create("none", network)), labels)
    assert (whole[:, : tokens.prefix] == IGNORE).all()
    assert torch.equal(whole[:, tokens.prefix :], labels)
    reduced = run_blocks(network, tokens, create("tome:8", network))
    targets = token_targets(reduced, labels)
    assert (targets[reduced.counts != 1] == IGNORE).all()
    assert (targets != IGNORE).any()


@pytest.mark.parametrize(
    ("recipe", "progress"), [("plain", 0.5), ("sizes", 0.5), ("budgets", 0.0), ("budgets", 0.99)]
)
def test_every_recipe_trains_all_blocks_and_both_heads(recipe: str, progress: float) -> None:
    network, token_head = model(), nn.Linear(CONFIG.width, BACKGROUND + 1)
    loss = RECIPES[recipe](network, token_head, batch(), progress, random.Random(0))
    loss.backward()  # type: ignore[no-untyped-call]
    for module in (*network.blocks, network.head, token_head):
        for parameter in module.parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all()


def test_budgets_embed_fewer_patches_early_in_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    network, counts = model(), list[int]()
    start = Tokens.start

    def recorded(x: torch.Tensor, prefix: int, rotation: Any = None) -> Tokens:
        counts.append(x.shape[1] - prefix)
        return start(x, prefix, rotation)

    monkeypatch.setattr(Tokens, "start", recorded)
    head = nn.Linear(CONFIG.width, BACKGROUND + 1)
    for progress in (0.0, 1.0):
        for seed in range(6):
            RECIPES["budgets"](network, head, batch(), progress, random.Random(seed))
    assert 196 in counts
    assert {count for count in counts if count < 196} <= {49, 64, 98}
    early = counts[: len(counts) // 2]
    assert any(later < earlier for earlier, later in pairwise(early))
    assert set(counts[-6:]) == {196}, "late steps use all patches"
