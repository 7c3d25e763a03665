"""The projector: visual tokens of any assignment of patches."""

import pytest
import torch

from foveate.models.layers.cells import cell_weights, grid_positions
from foveate.models.vlm.projector import Projector, ProjectorSpec

pytestmark = pytest.mark.usefixtures("inference_on_one_thread")

SPEC = ProjectorSpec(24, 16, 8, 4)


def projector() -> Projector:
    torch.manual_seed(0)
    return Projector(SPEC)


def test_the_scale_of_weights_and_the_order_of_patches_have_no_effect() -> None:
    built, features = projector(), torch.randn(2, 36, 24)
    places, weights = grid_positions(6, 6), cell_weights(2, 3, 6, 6)
    centres = grid_positions(2, 3)
    tokens = built.tokens(built.patches(features, places), weights, centres)
    assert tokens.shape == (2, 6, 8)
    order = torch.randperm(36)
    moved = built.patches(features[:, order], places[order])
    again = built.tokens(moved, 5 * weights[:, order], centres)
    torch.testing.assert_close(again, tokens)


def test_each_row_may_have_an_assignment_of_its_own() -> None:
    built, features = projector(), torch.randn(2, 36, 24)
    places, chosen = grid_positions(6, 6), torch.tensor([[0, 7, 9], [35, 1, 4]])
    weights = torch.nn.functional.one_hot(chosen, 36).float()
    tokens = built.tokens(built.patches(features, places), weights, places[chosen])
    picked = features.gather(1, chosen[..., None].expand(-1, -1, 24))
    alone = built.tokens(built.patches(picked, places[chosen]), torch.eye(3), places[chosen])
    torch.testing.assert_close(tokens, alone)


def test_it_runs_in_half_precision() -> None:
    built, features = projector(), torch.randn(2, 36, 24)
    places, weights = grid_positions(6, 6), cell_weights(3, 3, 6, 6)
    exact = built.tokens(built.patches(features, places), weights, grid_positions(3, 3))
    half = built.bfloat16()
    rounded = half.tokens(half.patches(features.bfloat16(), places), weights, grid_positions(3, 3))
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), exact, rtol=0.05, atol=0.05)


def test_positions_are_the_centres_of_cells() -> None:
    assert grid_positions(2, 2).tolist() == [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]
