"""Profiles made from numbers: the colours of other gamuts and curves in sRGB."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from foveate.gateway.media.color_primaries import (
    HLG,
    LINEAR,
    PQ,
    SRGB_PRIMARIES,
    WIDE_PRIMARIES,
    Chromaticities,
    coded_profile,
    gamma_profile,
    rgb_profile,
)
from foveate.gateway.media.color_profile import conversion_to_srgb

BT709, SRGB_CURVE, DISPLAY_P3 = 1, 13, 12
COLOURS = [
    (200, 40, 40),
    (30, 180, 60),
    (128, 128, 128),
    (250, 250, 10),
    (90, 120, 200),
    (255, 255, 255),
    (0, 0, 0),
]


def matrix(chromaticities: Chromaticities) -> NDArray[np.float64]:
    """Linear RGB to XYZ."""
    white, *primaries = [
        (x, y, 1 - x - y) for x, y in zip(chromaticities[::2], chromaticities[1::2], strict=True)
    ]
    columns = np.array(primaries).T
    return np.asarray(columns * np.linalg.solve(columns, np.array(white) / white[1]))


def expected(colour: tuple[int, ...], primaries: Chromaticities) -> NDArray[np.float64]:
    """The colour in sRGB by plain arithmetic. Both white points are the same."""
    coded = np.array(colour) / 255
    light = np.where(coded <= 0.04045, coded / 12.92, ((coded + 0.055) / 1.055) ** 2.4)
    light = np.clip(np.linalg.inv(matrix(SRGB_PRIMARIES)) @ matrix(primaries) @ light, 0, 1)
    return np.asarray(255 * np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055))


def converted(profile: bytes | None, colour: tuple[int, ...]) -> Any:
    conversion = conversion_to_srgb(profile, "RGB")
    image = Image.new("RGB", (1, 1), colour)
    return np.asarray(conversion.apply(image) if conversion else image, np.int64)[0, 0]


@pytest.mark.parametrize("code", [9, 12])
@pytest.mark.parametrize("colour", COLOURS)
def test_wide_colours_are_converted_to_srgb(code: int, colour: tuple[int, ...]) -> None:
    difference = converted(coded_profile(code, SRGB_CURVE), colour) - expected(colour, WIDE_PRIMARIES[code])
    assert abs(difference).max() <= 2


@pytest.mark.parametrize("primaries", [BT709, 2, 5, 6, 77])
@pytest.mark.parametrize("transfer", [1, 2, 6, 13, 14, 99])
def test_colours_that_are_shown_as_srgb_need_no_profile(primaries: int, transfer: int) -> None:
    assert coded_profile(primaries, transfer) is None


def test_linear_light_is_coded() -> None:
    assert converted(coded_profile(BT709, LINEAR), (55, 55, 55)) == pytest.approx(128, abs=2)


@pytest.mark.parametrize(("transfer", "white"), [(PQ, 148), (HLG, 191)])
def test_the_reference_white_of_hdr_becomes_white(transfer: int, white: int) -> None:
    """BT.2408: 203 nits are 58% of PQ and 75% of HLG. Brighter light is clipped, darker grey stays grey."""
    profile = coded_profile(9, transfer)
    assert converted(profile, (white,) * 3).min() >= 253
    assert converted(profile, (255,) * 3).min() == 255
    grey = converted(profile, (white // 2,) * 3)
    assert grey.max() - grey.min() <= 2
    assert 20 < grey.mean() < 150


def test_gamma_of_srgb_changes_nothing_and_another_one_does() -> None:
    assert conversion_to_srgb(gamma_profile(0.45455, SRGB_PRIMARIES), "RGB") is None
    assert converted(gamma_profile(1.0, None), (55, 55, 55)) == pytest.approx(128, abs=2)
    wide = gamma_profile(0.45455, WIDE_PRIMARIES[DISPLAY_P3])
    assert (
        abs(converted(wide, (200, 40, 40)) - expected((200, 40, 40), WIDE_PRIMARIES[DISPLAY_P3])).max() <= 2
    )


@pytest.mark.parametrize("gamma", [0.0, -1.0, 1e9, float("nan")])
def test_a_gamma_without_sense_is_ignored(gamma: float) -> None:
    assert gamma_profile(gamma, None) is None


@pytest.mark.parametrize(
    "chromaticities", [(0.0,) * 8, (0.3, 0.3) * 4, (0.3, 0.0, *SRGB_PRIMARIES[2:]), (1e30,) * 8]
)
def test_primaries_without_sense_are_ignored(chromaticities: Chromaticities) -> None:
    assert rgb_profile(chromaticities, np.linspace(0, 1, 9)) is None
