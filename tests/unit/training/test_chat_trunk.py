"""The fine-tuning of the trunk for scenes of several objects."""

import random

import numpy as np
import pytest
import torch

from foveate.models.weights import hub
from training.chat_trunk import (
    BACKGROUND,
    KEPT,
    NOT_TINTED,
    MultiTrunk,
    compressed,
    count_loss,
    draw_batch,
    kept_patches,
    object_accuracy,
)
from training.multi_scenes import draw_multi


@pytest.fixture(scope="module")
def model() -> MultiTrunk:
    torch.manual_seed(0)
    return MultiTrunk(hub.load("vit-t").model)


def test_targets_are_those_of_the_objects() -> None:
    batch, scene = draw_batch(3, 2, 0, (224,)), draw_multi("train", 6)
    for index, item in enumerate(scene.objects):
        covered = torch.from_numpy(scene.owners == index)
        assert (batch.classes[0, covered] == item.label).all()
        assert ((batch.tints[0, covered] == NOT_TINTED) == (item.tint is None)).all()
        patch = int(covered.nonzero()[0])
        own = np.array([patch % 14 + 0.5, patch // 14 + 0.5]) / 14
        np.testing.assert_allclose(batch.centres[0, patch].numpy() + own, item.centre, atol=1e-6)
    assert (batch.classes == BACKGROUND).any() and (batch.classes == -100).any()
    assert batch.centred[0].sum() == len(scene.objects)
    x, y = scene.objects[0].centre
    assert batch.centred[0, int(y * 14) * 14 + int(x * 14)] == 1


def test_the_targets_of_a_resized_image_are_those_of_its_own_patches() -> None:
    batch, scene = draw_batch(3, 2, 0, (160,)), draw_multi("train", 6)
    assert batch.images.shape == (2, 160, 160, 3)
    for index, item in enumerate(scene.objects):
        covered = (batch.owners[0] == index).nonzero().flatten()
        assert (batch.classes[0, covered] == item.label).all()
        left, top, right, bottom = (value / 224 * 10 for value in item.box)
        rows, columns = covered // 10, covered % 10
        assert ((rows + 1 > top) & (rows < bottom) & (columns + 1 > left) & (columns < right)).all()
        own = torch.stack([columns, rows], -1) + 0.5
        expected = torch.tensor(item.centre).expand(len(covered), 2)
        torch.testing.assert_close(batch.centres[0, covered] + own / 10, expected, atol=1e-5, rtol=0)
    assert {draw_batch(step, 1, 0).images.shape[1] for step in range(12)} == {160, 224}


def test_another_seed_draws_other_scenes() -> None:
    assert not torch.equal(draw_batch(0, 1, 0, (224,)).images, draw_batch(0, 1, 1, (224,)).images)


def test_initially_the_features_are_those_of_the_shipped_trunk(model: MultiTrunk) -> None:
    shipped = MultiTrunk(hub.load("vit-t").model, frozen=True)
    images = draw_batch(0, 2, 0, (224,)).images
    with torch.inference_mode():
        for mine, theirs in zip(model.features(images), shipped.features(images), strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)


def test_half_of_the_patches_are_left_out_and_all_are_background() -> None:
    classes = draw_batch(1, 3, 0, (224,)).classes
    kept = kept_patches(classes, random.Random(0))
    assert kept.shape == (3, KEPT)
    objects = (classes != BACKGROUND).sum(1)
    assert ((classes.gather(1, kept) != BACKGROUND).sum(1) == objects.clamp(max=KEPT)).all()
    assert all(row.unique().numel() == KEPT for row in kept)


def test_early_matrices_change_by_low_rank_and_late_ones_as_they_are(model: MultiTrunk) -> None:
    batch = draw_batch(2, 2, 0, (224,))
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(batch, kept_patches(batch.classes, random.Random(0)))
    loss.backward()  # type: ignore[no-untyped-call]
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert "trunk.blocks.0.attn.qkv.parametrizations.weight.0.up" in trained
    assert "trunk.blocks.0.attn.qkv.parametrizations.weight.original" not in trained
    assert "trunk.blocks.11.mlp.fc2.weight" in trained and "trunk.norm.weight" in trained
    assert "trunk.pos_embed" not in trained and "trunk.head.weight" not in trained
    groups = [group for optimiser in model.optimisers(1e-3) for group in optimiser.param_groups]
    assert {id(p) for g in groups for p in g["params"]} == {
        id(p) for p in model.parameters() if p.requires_grad
    }


def test_the_shares_of_an_objects_patches_add_up_to_one() -> None:
    owners = torch.tensor([[0, 0, 1, -1, -2], [0, -1, -1, -1, -1]])
    right = torch.tensor([[0.5, 0.5, 1.0, 0, 0], [1.0, 0, 0, 0, 0]])
    assert count_loss(right, owners) == 0
    for row, patch in ((0, 0), (0, 3), (0, 4), (1, 1)):
        wrong = right.clone()
        wrong[row, patch] += 0.5
        assert count_loss(wrong, owners) > 0


def test_accuracies_are_shares(model: MultiTrunk) -> None:
    figures = object_accuracy(model, [draw_multi("heldout", number) for number in range(8)])
    assert set(figures) == {
        "class",
        "class_tinted",
        "class_small",
        "tint",
        "centre_error",
        "centred_f1",
        "count",
    }
    assert figures["centre_error"] > 0


def test_some_images_are_as_a_jpeg_shows_them() -> None:
    image = draw_multi("train", 0).image
    versions = [compressed(image, np.random.default_rng(seed)) for seed in range(8)]
    same = [np.array_equal(version, image) for version in versions]
    assert any(same) and not all(same)
    assert all(np.abs(v.astype(int) - image).mean() < 8 for v in versions)
