"""The patches behind visual tokens: groups, counts and the drawn page."""

import numpy as np
import pytest
import torch

from foveate.models.layers.cells import cell_weights
from foveate.models.profiling import explain_picture, explain_visual_tokens
from foveate.models.vlm.visual_tokens import VisualTokens

NOISE = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
PIXELS = np.full((32, 32, 3), 200, np.uint8)


def tokens(weights: torch.Tensor) -> VisualTokens:
    count = len(weights)
    return VisualTokens(torch.zeros(count, 4), weights, torch.zeros(count, 2))


MIXED = tokens(torch.tensor([[0, 1.0, 0, 0], [0.5, 0, 0.5, 0]]))
"""2 x 2 patches: the second is a token, the left ones are merged, the last is dropped."""


def test_each_patch_has_the_group_of_its_token() -> None:
    assert explain_visual_tokens.token_groups(MIXED).groups == (0, 1, 0, -1)
    assert explain_visual_tokens.patch_counts(MIXED) == {"kept": 1, "merged": 2, "dropped": 1}


def test_a_patch_that_cells_share_is_shown_in_one_and_counted_as_merged() -> None:
    shared = tokens(cell_weights(2, 2, 3, 3))
    assert explain_visual_tokens.token_groups(shared).groups == (0, 0, 2, 0, 0, 2, 6, 6, 8)
    assert explain_visual_tokens.token_groups(shared).patch_states == ("merged",) * 9
    assert explain_visual_tokens.patch_counts(shared) == {"kept": 0, "merged": 9, "dropped": 0}
    page = explain_visual_tokens.draw([NOISE], [shared], (3, 3), "plan", "what? a fox")
    painted = np.asarray(page)[54 : 54 + 279, 308 : 308 + 279]
    assert painted[-60:-20, -60:-20].std((0, 1)).max() == 0, "a patch of a mean has one colour"


@pytest.mark.parametrize("pictures", [1, 3])
def test_a_page_has_two_panels_for_each_picture(pictures: int) -> None:
    page = explain_visual_tokens.draw([PIXELS] * pictures, [MIXED] * pictures, (2, 2), "plan", "what? a fox")
    panels = 2 * pictures if pictures == 1 else 3
    assert page.width == panels * (explain_picture.PANEL + explain_picture.SPACE) + explain_picture.SPACE
    painted = np.asarray(page)[54:334, 308:588]
    assert painted[200, 200].max() < 60, "a dropped patch is dark"
    assert (painted[50, 200] == 200).all()


def test_a_long_answer_begins_at_the_margin() -> None:
    drawn = [
        np.asarray(explain_visual_tokens.draw([PIXELS], [MIXED], (2, 2), "plan", "what? " + "fox " * count))
        for count in (1, 20)
    ]
    below = [page[-52:-34, :290].min() < 100 for page in drawn]
    assert below == [False, True]
