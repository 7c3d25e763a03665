"""The compared JPEG decoders agree, and the page is a function of the figures."""

import numpy as np
import pytest

from loadtests.decode import CROP, candidates, page, photograph, pillow_full, scaled_size, shrink_for
from loadtests.report import read


@pytest.mark.parametrize("name", [name for name in candidates() if name != "opencv_area"])
def test_every_decoder_gives_the_crop_of_the_reference(name: str) -> None:
    data = photograph(640, 480)
    pixels = candidates()[name](data)
    assert pixels.shape == (CROP, CROP, 3) and pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - pillow_full(data).astype(int)).mean() < 1


def test_a_decoder_shrinks_only_as_far_as_the_margin_allows() -> None:
    assert scaled_size(640, 480) == (341, 256)
    assert [shrink_for(1920, 1080, margin) for margin in (1, 2)] == [4, 2]
    assert shrink_for(640, 480, 1) == 1


def test_the_page_has_a_row_per_decoder() -> None:
    text = page(read("decode"))
    assert "| gateway | 2.991 | 0 | 0 | 6.669 | 0.246 | 11 |" in text
    assert "| - |" not in text
