"""Vectors of length 1."""

import numpy as np

from foveate.core.unit_length import unit_length


def test_zeros_stay_and_large_numbers_do_not_overflow() -> None:
    zeros = np.zeros(3, np.float32)
    assert unit_length(zeros).tolist() == [0, 0, 0]
    np.testing.assert_allclose(unit_length(np.full(4, 3e38, np.float32)), 0.5)
    assert unit_length(np.array([1, 0], np.float16)).dtype == np.float32


def test_each_row_is_scaled_alone_and_the_argument_stays() -> None:
    rows = np.array([[3, 4], [0, 0], [1e-30, 0], [np.nan, 1]], np.float32)
    before = rows.copy()
    expected = np.array([[0.6, 0.8], [0, 0], [1, 0], [np.nan, np.nan]], np.float32)
    np.testing.assert_allclose(unit_length(rows), expected, rtol=1e-6)
    np.testing.assert_array_equal(rows, before)
    assert unit_length(np.empty((0, 1), np.float32)).shape == (0, 1)
