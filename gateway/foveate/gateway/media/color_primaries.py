"""ICC profiles for colours that a file describes by numbers, as clips and PNGs without a profile do."""

import struct
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Chromaticities = tuple[float, float, float, float, float, float, float, float]
"""x and y of the white point, then of red, green and blue (CIE 1931)."""
Curve = NDArray[np.float64]
"""Linear light from 0 to 1 at equally spaced coded values."""

_D65 = (0.3127, 0.3290)
SRGB_PRIMARIES: Chromaticities = (*_D65, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
WIDE_PRIMARIES: dict[int, Chromaticities] = {
    9: (*_D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
    11: (0.314, 0.351, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    12: (*_D65, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
}
"""Primaries by their code in ITU-T H.273, table 2: BT.2020, DCI-P3, Display P3. Those of BT.601 are so
close to sRGB's that players show them unchanged."""
LINEAR, PQ, HLG = 8, 16, 18
"""Codes of transfer characteristics (table 3). All others are shown with sRGB's curve, as players do."""
SRGB_GAMMA = 0.45455
"""The value of gAMA that means sRGB's curve."""
STEPS = 4096
"""Entries of a curve."""
WHITE_NITS = 203
"""Luminance of white in HDR (ITU-R BT.2408). Brighter light becomes white."""
HLG_WHITE = 0.75
"""The coded value of white in HLG (BT.2408)."""

_D50 = np.array([0.9642, 1.0, 0.8249])
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


@lru_cache(32)
def coded_profile(primaries: int, transfer: int) -> bytes | None:
    """The profile for codes of ITU-T H.273; None for colours that are shown as sRGB."""
    if primaries not in WIDE_PRIMARIES and transfer not in (LINEAR, PQ, HLG):
        return None
    return rgb_profile(WIDE_PRIMARIES.get(primaries, SRGB_PRIMARIES), _curve(transfer))


@lru_cache(32)
def gamma_profile(gamma: float, chromaticities: Chromaticities | None) -> bytes | None:
    """The profile for the chunks gAMA and cHRM of a PNG; None for values that make no sense.

    gamma: the exponent from light to coded values.
    """
    if not 0.1 <= gamma <= 10:
        return None
    coded = np.linspace(0, 1, STEPS)
    curve = _curve(0) if abs(gamma - SRGB_GAMMA) < 0.01 else coded ** (1 / gamma)
    return rgb_profile(chromaticities or SRGB_PRIMARIES, curve)


def rgb_profile(chromaticities: Chromaticities, curve: Curve) -> bytes | None:
    """An ICC profile of three primaries and one curve (ICC.1:2022, section 8.3); None for primaries that do
    not span a space of colours."""
    if not all(-1 <= value <= 1 for value in chromaticities) or chromaticities[1] <= 0.01:
        return None
    (white, *primaries) = [(x, y, 1 - x - y) for x, y in zip(*[iter(chromaticities)] * 2, strict=True)]
    try:
        whites = np.array(white) / white[1]
        matrix = np.array(primaries).T
        matrix = matrix * np.linalg.solve(matrix, whites)
        response = _BRADFORD @ whites
        adaptation = np.linalg.inv(_BRADFORD) @ np.diag(_BRADFORD @ _D50 / response) @ _BRADFORD
    except np.linalg.LinAlgError:
        return None
    columns = (adaptation @ matrix).T
    if not np.isfinite(columns).all() or abs(columns).max() > 10:
        return None
    tags = [(b"wtpt", _xyz(_D50)), *zip((b"rXYZ", b"gXYZ", b"bXYZ"), map(_xyz, columns), strict=True)]
    values = np.round(np.clip(curve, 0, 1) * 65535).astype(">u2").tobytes()
    tags += [
        (name, b"curv\0\0\0\0" + struct.pack(">I", len(curve)) + values)
        for name in (b"rTRC", b"gTRC", b"bTRC")
    ]
    table, body, at = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, value in tags:
        table += name + struct.pack(">II", at + len(body), len(value))
        body += value + b"\0" * (-len(value) % 4)
    head = struct.pack(">I4x", at + len(body)) + b"\x02\x10\0\0mntrRGB XYZ " + bytes(12) + b"acsp" + bytes(28)
    return (head + _xyz(_D50)[8:]).ljust(128, b"\0") + table + body


def _xyz(values: NDArray[np.float64]) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(float(value) * 65536) for value in values))


def _curve(transfer: int) -> Curve:
    coded = np.linspace(0, 1, STEPS)
    if transfer == LINEAR:
        return coded
    if transfer == PQ:  # SMPTE ST 2084, equation 4.1
        power = coded ** (1 / 78.84375)
        light = np.maximum(power - 0.8359375, 0) / (18.8515625 - 18.6875 * power)
        return light ** (1 / 0.1593017578125) * 10_000 / WHITE_NITS
    if transfer == HLG:
        return (_hlg(coded) / _hlg(np.array([HLG_WHITE]))) ** 1.2
    return np.where(coded <= 0.04045, coded / 12.92, ((coded + 0.055) / 1.055) ** 2.4)


def _hlg(coded: Curve) -> Curve:
    """Light of the scene from 0 to 1 (ITU-R BT.2100, table 5: the inverse of the OETF)."""
    high = (np.exp((coded - 0.55991073) / 0.17883277) + 0.28466892) / 12
    return np.where(coded <= 0.5, coded**2 / 3, high)
