"""Expedit's clustering against section 3.2 of its paper, one patch at a time."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.core.errors import BadPlan
from foveate.models import reduction
from foveate.models.layers.config import ViTConfig
from foveate.models.layers.reducer import Attention, Needs, UntrainedContext
from foveate.models.layers.tokens import Tokens
from foveate.models.reduction.expedit import cluster

CONTEXT = UntrainedContext(ViTConfig(image_size=96, width=24, depth=6, heads=2, classes=4))

pytestmark = pytest.mark.usefixtures("inference_on_one_thread")


def reference_clusters(
    x: Tensor, rows: int, iterations: int, reach: int, sharpness: float
) -> tuple[Tensor, Tensor]:
    """Section 3.2, patch by patch: x (P, D) to centres (J, D) and shares (J, P)."""
    side = math.isqrt(len(x))
    grid = x.T.reshape(1, -1, side, side)
    centres = F.adaptive_avg_pool2d(grid, rows).flatten(2)[0].T.clone()
    share = torch.zeros(rows * rows, len(x))
    for _ in range(iterations):
        share.zero_()
        for patch in range(len(x)):
            row, column = patch // side * rows // side, patch % side * rows // side
            near = [
                j for j in range(rows * rows)
                if abs(j // rows - row) <= reach and abs(j % rows - column) <= reach
            ]  # fmt: skip
            weights = [math.exp(-sharpness * float(((x[patch] - centres[j]) ** 2).sum())) for j in near]
            for j, weight in zip(near, weights, strict=True):
                share[j, patch] = weight / sum(weights)
        centres = share @ x / share.sum(1, keepdim=True)
    return centres, share


@pytest.mark.parametrize(("rows", "reach", "sharpness"), [(3, 1, 0.05), (4, 2, 0.01), (2, 1, 0.2)])
def test_clusters_are_the_papers(rows: int, reach: int, sharpness: float) -> None:
    x = torch.randn(2, 36, 24, generator=torch.Generator().manual_seed(5))
    share, parts = cluster(x, rows, iterations=3, reach=reach, sharpness=sharpness, nearest=3)
    for row in range(2):
        centres, expected = reference_clusters(x[row], rows, 3, reach, sharpness)
        assert torch.allclose(share[row], expected, atol=1e-4)
        for patch in range(36):  # equation 4: the k nearest clusters, at any distance
            distances = ((x[row, patch] - centres) ** 2).sum(1)
            nearest = distances.argsort()[:3]
            weights = torch.exp(-sharpness * distances[nearest])
            mixed = torch.zeros(rows * rows).scatter(0, nearest, weights / weights.sum())
            assert torch.allclose(parts[row, patch], mixed, atol=1e-4)


@pytest.mark.parametrize(
    ("argument", "block", "clusters"), [("0.5@3", 2, 9), ("0.7", 2, 16), ("0.1@6", 5, 1)]
)
def test_one_block_replaces_the_patches_by_clusters(argument: str, block: int, clusters: int) -> None:
    reducer = reduction.create(f"expedit:{argument}", CONTEXT)
    assert [index for index in range(6) if reducer.needs(index) == Needs.NOTHING] == [block]
    assert reducer.after(37, 1, 6) == (37,) * block + (1 + clusters,) * (6 - block)
    start = Tokens.start(torch.randn(2, 37, 24, generator=torch.Generator().manual_seed(1)), 1)
    after = start.apply(reducer(start, Attention(), block))
    assert len(after) == 1 + clusters
    assert torch.equal(after.x[:, 0], start.x[:, 0]), "the class token stays as it is"
    assert torch.allclose(after.counts.sum(1), torch.tensor(37.0))


def test_tokens_that_are_no_square_grid_are_refused() -> None:
    reducer = reduction.create("expedit:0.5", CONTEXT)
    with pytest.raises(BadPlan, match="square grid"):
        reducer(Tokens.start(torch.zeros(1, 36, 24), 1), Attention(), 2)


@pytest.mark.parametrize("argument", ["", ":0", ":1.1", ":0.5@0", ":0.5@7", ":half", ":0.5@"])
def test_an_argument_that_is_no_share_or_no_block_is_refused(argument: str) -> None:
    with pytest.raises(BadPlan, match="expedit takes a share"):
        reduction.create(f"expedit{argument}", CONTEXT)
