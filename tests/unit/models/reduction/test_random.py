"""The baseline that prunes at random."""

import pytest
import torch

from foveate.core.errors import BadPlan
from foveate.models import reduction
from foveate.models.layers.config import ViTConfig
from foveate.models.layers.reducer import Needs, UntrainedContext
from tests.support.references import PLAIN, TWO_PREFIX, build, random_images

pytestmark = pytest.mark.usefixtures("inference_on_one_thread")


def kept_patches(text: str, batch: int = 3) -> list[list[int]]:
    """The patches that are left at the end, for each image."""
    model, reducer = build(TWO_PREFIX), reduction.create(text, UntrainedContext(TWO_PREFIX))
    tokens = model.embed(random_images(TWO_PREFIX, batch))
    for index, block in enumerate(model.blocks):
        tokens = block(tokens, reducer, index)
    assert (tokens.origin[:, :2] == torch.tensor([0, 1])).all()
    assert (tokens.counts == 1).all()
    return [row.nonzero()[:, 0].tolist() for row in tokens.source >= 0]


def test_every_image_keeps_the_same_patches_in_image_order() -> None:
    patches = kept_patches("random:0.5")
    assert patches == [patches[0]] * 3
    assert len(patches[0]) == 5  # 36, 18, 9, 5
    assert patches[0] == sorted(patches[0])
    assert kept_patches("random:0.5", batch=1) == patches[:1]


def test_seeds_give_other_draws() -> None:
    assert kept_patches("random:0.5") == kept_patches("random:0.5:0")
    assert len({tuple(kept_patches(f"random:0.5:{seed}")[0]) for seed in range(8)}) > 5


def test_every_position_is_as_likely() -> None:
    hits = torch.zeros(36)
    for seed in range(100):
        hits[kept_patches(f"random:0.7:{seed}", batch=1)[0]] += 1
    expected = hits.sum() / 36
    assert (hits - expected).abs().max() < 5 * expected.sqrt()


def test_it_prunes_at_the_blocks_of_evit_without_attention() -> None:
    reducer = reduction.create("random:0.7", UntrainedContext(ViTConfig()))
    evit = reduction.create("evit:0.7", UntrainedContext(ViTConfig()))
    assert [reducer.needs(block) for block in range(12)] == [
        Needs.NOTHING if evit.needs(block) else None for block in range(12)
    ]


@pytest.mark.parametrize("argument", ["", ":", ":0", ":1.1", ":-1", ":nan", ":half", ":0.5:-1", ":0.5:1234"])
def test_an_argument_that_is_no_keep_rate_is_refused(argument: str) -> None:
    with pytest.raises(BadPlan, match="keep rate up to 1"):
        reduction.create(f"random{argument}", UntrainedContext(PLAIN))
