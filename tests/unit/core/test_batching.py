"""The batch sizes that policies and runners share."""

from itertools import pairwise

from foveate.core.batching import BATCH_SIZES


def test_sizes_start_at_one_and_grow_by_at_most_two() -> None:
    assert BATCH_SIZES[:8] == (1, 2, 3, 4, 6, 8, 12, 16)
    assert all(small < large <= 2 * small for small, large in pairwise(BATCH_SIZES))
    assert BATCH_SIZES[-1] > 4096
