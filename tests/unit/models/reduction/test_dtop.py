"""DToP against plain loops over the paper's rule."""

import math

import pytest
import torch
from torch import Tensor

from foveate.core.errors import BadPlan
from foveate.models import reduction
from foveate.models.layers.config import ViTConfig
from foveate.models.layers.reducer import UntrainedContext
from foveate.models.reduction.dtop import CONTEXT, uncertain_or_context
from foveate.models.runners.dense import dense_of, shown
from tests.support.dense_heads import dense_model, tokens_by_block

CONFIG = ViTConfig(image_size=96, width=24, depth=6, heads=2, classes=4)

pytestmark = pytest.mark.usefixtures("inference_on_one_thread")


def images(batch: int) -> Tensor:
    return torch.randn(batch, 3, 96, 96, generator=torch.Generator().manual_seed(3))


def test_uncertain_patches_and_the_most_certain_few_of_each_class_stay() -> None:
    generator = torch.Generator().manual_seed(2)
    probabilities = (4 * torch.randn(3, 60, 4, generator=generator)).softmax(2)
    present = torch.rand(3, 60, generator=generator) < 0.9
    stays = uncertain_or_context(probabilities, present, 0.9)
    for row in range(3):
        best, classes = probabilities[row].max(1)
        for patch in range(60):
            more_certain = [
                p for p in range(60)
                if present[row, p] and classes[p] == classes[patch] and best[p] > best[patch]
            ]  # fmt: skip
            expected = bool(present[row, patch]) and (
                float(best[patch]) <= 0.9 or len(more_certain) < CONTEXT
            )
            assert bool(stays[row, patch]) == expected
    assert 0 < int(stays.sum()) < int(present.sum())


def test_a_share_keeps_equally_many_patches_of_each_image_the_least_certain_ones() -> None:
    model, block = dense_model(CONFIG), 2
    tokens = tokens_by_block(model, images(4), "dtop:0.3@3")
    before, last = tokens[block], tokens[-1]
    assert {len(after) for after in tokens[block + 1 :]} == {1 + math.ceil(0.3 * 36)}
    head = dense_of(model)
    certainty = head.classify_patches(head.read(before.grid(), block)).softmax(2).amax(2)
    for row, kept in zip(certainty, shown(last), strict=True):
        assert row[kept].max() <= row[~kept].min()


def test_a_threshold_acts_after_a_third_a_half_and_two_thirds_of_the_blocks() -> None:
    reducer = reduction.create("dtop:0.9", dense_model(CONFIG))
    assert [block for block in range(6) if reducer.needs(block) is not None] == [2, 3, 4]
    assert reducer.after(37, 1, 6) == (37,) * 6, "no patch has to be certain"


@pytest.mark.parametrize(
    "text", ["dtop:0@3", "dtop:0.3@0", "dtop:0.3@7", "dtop:1.1@3", "dtop:@3", "dtop:0.3@"]
)
def test_an_argument_that_is_no_share_or_no_block_is_refused(text: str) -> None:
    with pytest.raises(BadPlan, match="dtop takes"):
        reduction.create(text, dense_model(CONFIG))


def test_a_model_without_a_dense_head_is_refused() -> None:
    with pytest.raises(BadPlan, match="dense head"):
        reduction.create("dtop:0.9", UntrainedContext(CONFIG))
