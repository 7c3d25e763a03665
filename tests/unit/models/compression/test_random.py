"""The baseline of random patches."""

import torch

from foveate.models import compression
from foveate.models.layers.visual_tokens import CompressionContext, PatchVectors

FULL = CompressionContext((14, 14))


def kept(text: str, seed: int = 0, batch: int = 2) -> list[int]:
    vectors = torch.randn(batch, 196, 8, generator=torch.Generator().manual_seed(seed))
    index = compression.create(text, FULL)(PatchVectors(vectors, vectors[:, :, 0], (14, 14))).kept
    assert index is not None
    return [int(i) for i in index]


def test_the_plan_alone_decides_which_patches_stay() -> None:
    torch.manual_seed(5)
    first = kept("random:16")
    torch.manual_seed(6)
    assert kept("random:16", seed=1, batch=1) == kept("random:16:0") == first


def test_seeds_give_other_draws_that_reach_all_patches() -> None:
    draws = [kept(f"random:49:{seed}") for seed in range(40)]
    assert len({tuple(draw) for draw in draws}) == 40
    assert {patch for draw in draws for patch in draw} == set(range(196))
