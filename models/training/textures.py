"""Procedural backgrounds that resemble blurred photographs: cloud, wood, stone, grass, bokeh, brick."""

from collections.abc import Callable

import cv2
import numpy as np

Rng = np.random.Generator


def fractal(rng: Rng, side: int, coarsest: int = 3, octaves: int = 6, gain: float = 0.55) -> np.ndarray:
    """A sum of smooth noises at doubling frequencies, scaled to 0..1: (side, side) float32.

    coarsest: cells a side of the lowest frequency; gain: the weight of each frequency over the one before.
    """
    total = np.zeros((side, side), np.float32)
    cells, weight = coarsest, 1.0
    for _ in range(octaves):
        grid = rng.random((cells + 2, cells + 2), np.float32)
        total += weight * cv2.resize(grid, (side, side), interpolation=cv2.INTER_CUBIC)
        cells, weight = min(cells * 2, side), weight * gain
    total -= total.min()
    return total / max(float(total.max()), 1e-6)


def palette(rng: Rng, stops: int = 4) -> np.ndarray:
    """A colour ramp (256, 3) float32 in 0..255 around one random hue."""
    hue, spread = rng.uniform(0, 180), rng.uniform(5, 45)
    hsv = np.stack([
        (hue + rng.uniform(-spread, spread, stops)) % 180,
        rng.uniform(10, 190, stops),
        np.sort(rng.uniform(40, 245, stops)),
    ], axis=1)  # fmt: skip
    rgb = cv2.cvtColor(hsv[None].astype(np.uint8), cv2.COLOR_HSV2RGB)[0].astype(np.float32)
    at = np.linspace(0, 255, stops)
    return np.stack([np.interp(np.arange(256), at, rgb[:, c]) for c in range(3)], 1).astype(np.float32)


def _coloured(field: np.ndarray, rng: Rng) -> np.ndarray:
    """The colours (S, S, 3) of a field (S, S) in 0..1, from a random palette."""
    return palette(rng)[(field * 255).astype(np.uint8)]


def cloud(rng: Rng, side: int) -> np.ndarray:
    """Fractal noise."""
    return _coloured(fractal(rng, side, int(rng.integers(2, 6)), gain=rng.uniform(0.4, 0.7)), rng)


def wood(rng: Rng, side: int) -> np.ndarray:
    """Wavy rings along a random direction."""
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) / side
    angle = rng.uniform(0, np.pi)
    along = x * np.cos(angle) + y * np.sin(angle)
    rings = along * rng.uniform(8, 30) + fractal(rng, side, 2, 4) * rng.uniform(1, 5)
    field = 0.7 * (0.5 + 0.5 * np.sin(2 * np.pi * rings)) + 0.3 * fractal(rng, side, 40, 2)
    return _coloured(np.clip(field, 0, 1), rng)


def stone(rng: Rng, side: int) -> np.ndarray:
    """Cells around random points."""
    points = rng.integers(0, side, (rng.integers(20, 120), 2))
    seeds = np.full((side, side), 255, np.uint8)
    seeds[points[:, 0], points[:, 1]] = 0
    distance, cell = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 5)
    shade = rng.random(int(cell.max()) + 1).astype(np.float32)[cell]
    field = 0.5 * shade + 0.3 * fractal(rng, side, 8, 5) + 0.2 * np.clip(distance / side * 8, 0, 1)
    return _coloured(np.clip(field, 0, 1), rng)


def grass(rng: Rng, side: int) -> np.ndarray:
    """Random strokes over fractal noise."""
    image = cloud(rng, side)
    ramp = palette(rng)
    for _ in range(int(rng.integers(200, 600))):
        x, y = rng.integers(0, side, 2).tolist()
        length, lean = int(rng.integers(8, 50)), int(rng.integers(-12, 13))
        colour = ramp[rng.integers(256)].tolist()
        cv2.line(image, (x, y), (x + lean, y - length), colour, int(rng.integers(1, 4)), cv2.LINE_AA)
    return image


def bokeh(rng: Rng, side: int) -> np.ndarray:
    """Translucent discs over fractal noise."""
    image = cloud(rng, side)
    for _ in range(int(rng.integers(10, 50))):
        disc = image.copy()
        x, y = rng.integers(0, side, 2).tolist()
        cv2.circle(disc, (x, y), int(rng.integers(8, 60)), rng.uniform(60, 255, 3).tolist(), -1, cv2.LINE_AA)
        image = cv2.addWeighted(image, 0.7, disc, 0.3, 0)
    return image


def brick(rng: Rng, side: int) -> np.ndarray:
    """Bricks with joints, in shifted rows."""
    height, width = int(rng.integers(14, 50)), int(rng.integers(30, 110))
    y, x = np.mgrid[0:side, 0:side]
    row = y // height
    column = (x + (row % 2) * width // 2) // width
    shade = rng.random((side // height + 2, side // width + 3)).astype(np.float32)[row, column]
    joint = (y % height < 2) | ((x + (row % 2) * width // 2) % width < 2)
    field = np.where(joint, 0.0, 0.3 + 0.5 * shade) + 0.2 * fractal(rng, side, 20, 4)
    return _coloured(np.clip(field, 0, 1), rng)


# The functions take the randomness and the side in pixels, and return (side, side, 3) in 0..255.
TEXTURES: dict[str, Callable[[Rng, int], np.ndarray]] = {
    f.__name__: f for f in (cloud, wood, stone, grass, bokeh, brick)
}


def texture(rng: Rng, side: int) -> tuple[str, np.ndarray]:
    """A random background: the name of its kind, and its pixels (side, side, 3) uint8."""
    kind = list(TEXTURES)[rng.integers(len(TEXTURES))]
    light = 0.75 + 0.5 * fractal(rng, side, 2, 1)[..., None]
    return kind, np.clip(TEXTURES[kind](rng, side) * light, 0, 255).astype(np.uint8)
