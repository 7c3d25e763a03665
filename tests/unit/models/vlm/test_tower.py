"""The vision tower: features of patches at every size, and after a token reducer."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.core.errors import SetupError
from foveate.models import reduction
from foveate.models.vlm.tower import VisionTower
from tests.support import chat_models
from tests.support.chat_models import EARLY, TRUNK

pytestmark = pytest.mark.usefixtures("inference_on_one_thread")


def tower() -> VisionTower:
    return VisionTower(chat_models.trunk().model, EARLY)


def pictures(side: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def reference(built: VisionTower, images: Tensor) -> Tensor:
    """The features, from the outputs of whole blocks."""
    trunk, states = built.trunk, []
    tokens = trunk.embed(images)
    for index, block in enumerate(trunk.blocks):
        tokens = block(tokens, reduction.create("none", trunk), index)
        states.append(tokens.x[:, 1:])
    early = F.layer_norm(states[EARLY - 1], (TRUNK.width,))
    return torch.cat([early, trunk.norm(states[-1])], -1)


@pytest.mark.parametrize("side", [64, 48, 16, 96])
def test_features_are_those_of_an_early_and_the_last_block(side: int) -> None:
    built = tower()
    features = built(pictures(side))
    grid = side // TRUNK.patch_size
    assert features.patches.shape == (2, grid * grid, built.width)
    assert (features.side, features.tokens) == (grid, grid * grid)
    torch.testing.assert_close(features.patches, reference(built, pictures(side)))
    assert features.source.equal(torch.arange(grid * grid).expand(2, -1))
    assert features.counts.eq(1).all()


def test_rows_do_not_influence_each_other() -> None:
    built, images = tower(), pictures(64)
    together = built(images).patches
    for row in range(len(images)):
        torch.testing.assert_close(built(images[row : row + 1]).patches[0], together[row])


def test_merged_tokens_give_features_to_every_patch_that_they_represent() -> None:
    built = tower()
    merged = built(pictures(64), reduction.create("tome:2", built.trunk))
    assert merged.tokens == 16 - 2 * TRUNK.depth
    assert merged.counts.sum(1).eq(16).all()
    last = merged.patches[..., TRUNK.width :]
    for row in range(2):
        for token in range(merged.tokens):
            patches = (merged.source[row] == token).nonzero().squeeze(1)
            assert len(patches) == merged.counts[row, token]
            assert last[row, patches].eq(last[row, patches[0]]).all()
    # A patch that no token absorbed by the early block still has features of its own.
    early = merged.patches[..., : TRUNK.width]
    assert early.std(dim=1).min() > 0


def test_dropped_patches_have_no_features() -> None:
    built = tower()
    kept = built(pictures(64), reduction.create("random:0.5", built.trunk))
    dropped = kept.source < 0
    assert dropped.any() and not dropped.all()
    assert kept.patches[dropped][..., TRUNK.width :].eq(0).all()


@pytest.mark.parametrize("early", [0, 4])
def test_early_features_come_before_the_last_block(early: int) -> None:
    with pytest.raises(SetupError, match="after block 1 to 3"):
        VisionTower(chat_models.trunk().model, early)
