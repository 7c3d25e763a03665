"""Colour profiles of inks and of grey, built from a few numbers."""

import struct

import numpy as np

D50 = (0.9642, 1.0, 0.8249)


def profile(space: bytes, tags: list[tuple[bytes, bytes]], pcs: bytes = b"XYZ ") -> bytes:
    """An ICC profile (version 2) with these tags."""
    kind = b"prtr" if space == b"CMYK" else b"mntr"
    table, body, at = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, value in tags:
        table += name + struct.pack(">II", at + len(body), len(value))
        body += value + b"\0" * (-len(value) % 4)
    head = struct.pack(">I4x", at + len(body)) + b"\x02\x10\0\0" + kind + space + pcs + bytes(12) + b"acsp"
    head += bytes(28) + b"".join(struct.pack(">i", round(value * 65536)) for value in D50)
    return head.ljust(128, b"\0") + table + body


def grey_profile(gamma: float) -> bytes:
    """Grey with a curve of this exponent."""
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in D50))
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))
    return profile(b"GRAY", [(b"wtpt", white), (b"kTRC", curve)])


def cmyk_profile(grid: int = 9) -> bytes:
    """Inks that each absorb a part of the light, darker than their plain conversion to RGB.

    Both directions are tables of CIE Lab (lut16Type): one to read colours, one to write test images.
    """
    steps = np.linspace(0, 1, grid)
    inks = np.stack(np.meshgrid(*[steps] * 4, indexing="ij"), -1).reshape(-1, 4)
    rgb = (1 - 0.8 * inks[:, :3]) * (1 - 0.9 * inks[:, 3:])
    to_lab = _table(4, 3, grid, _lab(rgb**2.2))
    lab = np.stack(np.meshgrid(*[steps] * 3, indexing="ij"), -1).reshape(-1, 3)
    light = np.clip(_from_lab(lab), 0.0, 1) ** (1 / 2.2)
    back = np.concatenate([np.clip((1 - light) / 0.8, 0, 1), np.zeros((len(light), 1))], 1)
    return profile(b"CMYK", [(b"A2B0", to_lab), (b"B2A0", _table(3, 4, grid, back))], b"Lab ")


def _table(inputs: int, outputs: int, grid: int, values: np.ndarray) -> bytes:
    """lut16Type: values from 0 to 1, between plain curves."""
    unit = b"".join(struct.pack(">i", 65536 if at % 4 == 0 else 0) for at in range(9))
    plain = struct.pack(">HH", 0, 65535)
    head = b"mft2\0\0\0\0" + bytes((inputs, outputs, grid, 0)) + unit + struct.pack(">HH", 2, 2)
    return head + plain * inputs + np.round(values * 65535).astype(">u2").tobytes() + plain * outputs


_SRGB_TO_XYZ = np.array(
    [[0.4361, 0.3851, 0.1431], [0.2225, 0.7169, 0.0606], [0.0139, 0.0971, 0.7141]]
)  # at the white point D50


def _lab(light: np.ndarray) -> np.ndarray:
    """CIE Lab of linear sRGB, as fractions of the range of lut16Type in version 2."""
    ratio = light @ _SRGB_TO_XYZ.T / D50
    root = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
    lightness = 116 * root[:, 1] - 16
    a, b = 500 * (root[:, 0] - root[:, 1]), 200 * (root[:, 1] - root[:, 2])
    scaled = np.stack([lightness * 652.8, (a + 128) * 256, (b + 128) * 256], 1)
    return np.asarray(np.clip(scaled / 65535, 0, 1))


def _from_lab(coded: np.ndarray) -> np.ndarray:
    lightness, a, b = (coded * 65535).T
    lightness, a, b = lightness / 652.8, a / 256 - 128, b / 256 - 128
    y = (lightness + 16) / 116
    root = np.stack([y + a / 500, y, y - b / 200], 1)
    ratio = np.where(root**3 > 0.008856, root**3, (root - 16 / 116) / 7.787)
    return np.asarray((ratio * D50) @ np.linalg.inv(_SRGB_TO_XYZ).T)
