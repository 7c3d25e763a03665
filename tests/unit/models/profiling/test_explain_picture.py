"""The drawn explanation: its patches, panels, titles and colours."""

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from foveate.core.outcome import Explanation, ReductionStage
from foveate.models.profiling import explain_picture

FOUR = ReductionStage(3, 4, (0, 1, 0, -1))
"""2 x 2 patches: the left two are merged, the last one is dropped."""


def noise(side: int) -> NDArray[np.uint8]:
    return np.random.default_rng(2).integers(60, 256, (side, side, 3), dtype=np.uint8)


def test_each_patch_is_painted_by_its_fate() -> None:
    image = noise(20)
    painted = explain_picture.paint(image, FOUR, (2, 2), {0: (1, 2, 3)})
    assert np.array_equal(painted[:10, 10:], image[:10, 10:]), "a kept patch is unchanged"
    assert painted[10:, 10:].max() < 60, "a dropped patch is dark"
    mean = image[:, :10].mean((0, 1)).astype(np.uint8)
    assert np.array_equal(np.unique(painted[1:-1, 1:9].reshape(-1, 3), axis=0), [mean]), (
        "merged patches have one colour"
    )
    border = np.concatenate([painted[:, 0], painted[:, 9], painted[0, :10], painted[-1, :10]])
    assert np.array_equal(np.unique(border, axis=0), [[1, 2, 3]])
    assert np.array_equal(image, noise(20)), "the input is not changed"


@pytest.mark.parametrize(("stages", "across", "down"), [(0, 2, 1), (1, 2, 1), (3, 4, 1), (12, 5, 3)])
def test_a_page_has_a_panel_for_the_input_and_for_each_stage(stages: int, across: int, down: int) -> None:
    explanation = Explanation((2, 2), (FOUR,) * stages, 12)
    page = np.asarray(explain_picture.draw(noise(32), explanation, "vit-t@32/evit:0.5", "99% fox"))
    panel = explain_picture.PANEL + explain_picture.SPACE
    assert page.shape[1] == across * panel + explain_picture.SPACE
    lines = explain_picture.LINE * (2 * down + 2)
    assert page.shape[0] == down * panel + lines + explain_picture.SPACE
    text = [page[at : at + explain_picture.LINE, 14:294] for at in (14, 34)]
    assert all(line.min() < 200 for line in text), "each panel has its titles"


def test_a_long_line_is_cut_at_the_margin() -> None:
    explanation = Explanation((2, 2), (FOUR,), 12)
    short, long = (
        np.asarray(explain_picture.draw(noise(32), explanation, "plan", "9% " + "name " * n)) for n in (1, 99)
    )
    assert short.shape == long.shape
    assert not np.array_equal(short, long)
    margin = explain_picture.SPACE
    assert long[:, -margin:].min() == 255
    assert long[:, :margin].min() == 255


def test_each_group_keeps_its_outline_colour_and_no_two_are_equal() -> None:
    stages = [
        ReductionStage(1, 4, (0, 0, 2, 3)),
        ReductionStage(2, 3, (0, 0, 2, 2)),
        ReductionStage(3, 2, (0, 0, 0, 0)),
    ]
    colours = explain_picture.outline_colours(stages)
    assert set(colours) == {0, 2}
    assert all(first != second for first, second in itertools.combinations(colours.values(), 2))
