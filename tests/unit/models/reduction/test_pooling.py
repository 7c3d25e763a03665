"""The baseline that pools the grid of patches."""

import math

import pytest
import torch
import torch.nn.functional as F

from foveate.core.errors import BadPlan
from foveate.models import reduction
from foveate.models.layers.reducer import Attention, UntrainedContext
from foveate.models.layers.tokens import Tokens
from tests.support.references import PLAIN, build, random_images

pytestmark = pytest.mark.usefixtures("inference_on_one_thread")


def grid(side: int) -> Tokens:
    x = torch.randn(2, 1 + side * side, 4, generator=torch.Generator().manual_seed(3))
    return Tokens.start(x, prefix=1)


def pooled(tokens: Tokens, keep: str, block: int = 3) -> Tokens:
    return tokens.apply(
        reduction.create(f"pooling:{keep}", UntrainedContext(PLAIN))(tokens, Attention(), block)
    )


def test_a_quarter_of_an_even_grid_is_average_pooling() -> None:
    before = grid(6)
    after = pooled(before, "0.25")
    maps = before.x[:, 1:].transpose(1, 2).view(2, 4, 6, 6)
    expected = F.avg_pool2d(maps, 2).flatten(2).transpose(1, 2)
    assert torch.allclose(after.x[:, 1:], expected, atol=1e-6)
    assert torch.equal(after.x[:, 0], before.x[:, 0])
    assert after.counts.tolist() == [[1.0] + [4.0] * 9] * 2


@pytest.mark.parametrize(
    ("side", "keep"), [(6, "0.5"), (5, "0.6"), (14, "0.7"), (14, "0.1"), (2, "0.1"), (1, "0.5")]
)
def test_cells_are_rectangles_that_cover_the_grid(side: int, keep: str) -> None:
    after = pooled(grid(side), keep)
    coarse = max(1, round(math.sqrt(float(keep)) * side))
    assert len(after) == 1 + coarse**2
    cell = (after.source[0] - 1).view(side, side)
    assert set(cell.flatten().tolist()) == set(range(coarse**2))
    rows, columns = cell // coarse, cell % coarse
    assert (rows == rows[:, :1]).all() and (columns == columns[:1]).all()
    assert after.counts.sum(1).tolist() == [1 + side**2] * 2


def test_means_of_means_are_weighted_by_the_patches() -> None:
    before = grid(5)
    after = pooled(pooled(before, "0.4"), "0.1")  # 5 x 5, 3 x 3, 1 x 1
    assert len(after) == 2
    assert torch.allclose(after.x[:, 1], before.x[:, 1:].mean(1), atol=1e-6)


def test_tokens_after_every_block() -> None:
    model, reducer = build(PLAIN), reduction.create("pooling:0.5", UntrainedContext(PLAIN))
    tokens = model.embed(random_images(PLAIN))
    for index, block in enumerate(model.blocks):
        tokens = block(tokens, reducer, index)
        assert len(tokens) == reducer.after(37, 1, 6)[index]
    assert reducer.after(37, 1, 6) == (37, 17, 17, 10, 5, 5)


def test_tokens_that_are_no_grid_are_refused() -> None:
    with pytest.raises(BadPlan, match="square grid"):
        pooled(Tokens.start(torch.zeros(1, 6, 4), prefix=1), "0.5")


@pytest.mark.parametrize("argument", ["", ":", ":0", ":1.1", ":-1", ":nan", ":half"])
def test_an_argument_that_is_no_keep_rate_is_refused(argument: str) -> None:
    with pytest.raises(BadPlan, match="keep rate"):
        reduction.create(f"pooling{argument}", UntrainedContext(PLAIN))
