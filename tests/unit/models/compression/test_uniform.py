"""The baseline of evenly spaced patches."""

import pytest

from foveate.models.compression.uniform import evenly_spaced


@pytest.mark.parametrize("grid", [(14, 14), (3, 20), (20, 3), (1, 7)])
def test_every_count_gives_that_many_different_patches(grid: tuple[int, int]) -> None:
    for count in range(1, grid[0] * grid[1] + 1):
        kept = evenly_spaced(count, *grid).tolist()
        assert kept == sorted(set(kept)) and len(kept) == count
        assert kept[0] >= 0 and kept[-1] < grid[0] * grid[1]


def test_squares_are_the_centres_of_cells() -> None:
    assert evenly_spaced(4, 14, 14).tolist() == [3 * 14 + 3, 3 * 14 + 10, 10 * 14 + 3, 10 * 14 + 10]
    assert evenly_spaced(49, 14, 14).tolist() == [
        r * 14 + c for r in range(1, 14, 2) for c in range(1, 14, 2)
    ]


def test_patches_stand_about_as_far_apart_in_both_directions() -> None:
    kept = evenly_spaced(16, 4, 16)
    assert kept.tolist() == [*range(16 + 1, 32, 2), *range(48 + 1, 64, 2)]
    rows, columns = evenly_spaced(14, 14, 14) // 14, evenly_spaced(14, 14, 14) % 14
    assert len(set(rows.tolist())) == 4 and len(set(columns.tolist())) >= 4
