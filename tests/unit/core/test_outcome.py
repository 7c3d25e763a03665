"""Outcomes: states of patches, and the maps of frames that were not used."""

import numpy as np
import pytest

from foveate.core.outcome import ClassMaps, Explanation, ReductionStage, Result

MERGED = ReductionStage(4, 4, (0, 0, 2, 3))
DROPPED = ReductionStage(7, 3, (0, 0, -1, 3))


def test_a_patch_is_kept_merged_or_dropped_by_its_group() -> None:
    assert MERGED.patch_states == ("merged", "merged", "kept", "kept")
    assert DROPPED.patch_states == ("merged", "merged", "dropped", "kept")


def test_an_explanation_ends_with_its_last_stage() -> None:
    assert Explanation((2, 2), (MERGED, DROPPED), 12).patch_states == DROPPED.patch_states


def test_without_stages_all_patches_are_kept() -> None:
    assert Explanation((2, 3), (), 12).patch_states == ("kept",) * 6


@pytest.mark.parametrize(("frame", "used"), [(0, 2), (1, 2), (2, 2), (3, 2), (5, 5), (6, 5), (9, 9), (50, 9)])
def test_a_frame_that_was_not_used_has_the_maps_of_the_last_used_one(frame: int, used: int) -> None:
    maps = {number: ClassMaps((number,), np.zeros((1, 2, 2), np.float16)) for number in (2, 5, 9)}
    result = Result(np.zeros(2, np.float32), 5, 12, 0.5, frames=tuple(maps), frame_maps=tuple(maps.values()))
    assert result.maps_at(frame) is maps[used]
