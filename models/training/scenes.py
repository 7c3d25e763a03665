"""Synthetic scenes with a known scene graph: emoji over textured backgrounds with clutter."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import cv2
import numpy as np

from training.emoji import sprites
from training.labels import LABELS
from training.textures import Rng, texture

SPLITS = {"train": 1, "heldout": 2, "examples": 3}
"""The part of the random seed that differs between splits."""
BANK_SIZE = 360
"""Textures that all training scenes share."""
MARGIN = 2
"""Pixels between an object and the edges."""


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One object: its class, position and appearance."""

    label: int
    box: tuple[int, int, int, int]
    """left, top, right, bottom in pixels, right and bottom exclusive."""
    mask: np.ndarray
    """(H, W) bool: the visible pixels."""
    angle: float
    """Degrees, counter-clockwise."""
    size: float
    """Longer side of the upright object, in pixels."""
    colour: tuple[int, int, int]
    """Mean RGB of its visible pixels."""


@dataclass(frozen=True, slots=True)
class Scene:
    """An image and its objects. The first object is the class of the image."""

    image: np.ndarray
    """(H, W, 3) uint8 RGB."""
    objects: tuple[SceneObject, ...]
    background: str


def scene_rng(split: str, index: int) -> Rng:
    """The only randomness of a scene; no two splits share a seed."""
    return np.random.default_rng([SPLITS[split], index])


@cache
def _bank(split: str) -> list[tuple[str, np.ndarray]]:
    rng = np.random.default_rng([SPLITS[split], 2**31])
    return [texture(rng, 448) for _ in range(BANK_SIZE)]


def background(rng: Rng, split: str, height: int, width: int) -> tuple[str, np.ndarray]:
    """The name and the pixels (H, W, 3) of a background.

    The training split crops a bank of textures, which is fast. The other splits draw a new texture for each
    scene.
    """
    if split == "train":
        kind, tile = _bank(split)[rng.integers(BANK_SIZE)]
    else:
        kind, tile = texture(rng, 448)
    crop = rng.uniform(0.45, 1.0) * len(tile)
    h, w = (int(crop * side / max(height, width)) for side in (height, width))
    top, left = rng.integers(0, len(tile) - h + 1), rng.integers(0, len(tile) - w + 1)
    image = cv2.resize(tile[top : top + h, left : left + w], (width, height), interpolation=cv2.INTER_LINEAR)
    image = image[:: rng.choice([-1, 1]), :: rng.choice([-1, 1])]
    return kind, np.ascontiguousarray(image)


def clutter(rng: Rng, image: np.ndarray, count: int, largest: int) -> None:
    """Draw `count` shapes that are no objects into the image: ellipses, boxes, triangles and strokes."""
    height, width = image.shape[:2]
    for _ in range(count):
        x, y = int(rng.integers(width)), int(rng.integers(height))
        a, b = rng.integers(4, largest, 2).tolist()
        colour = rng.integers(0, 256, 3).tolist()
        angle = float(rng.uniform(0, 360))
        match rng.integers(4):
            case 0:
                cv2.ellipse(image, (x, y), (a, b), angle, 0, 360, colour, -1, cv2.LINE_AA)
            case 1:
                corners = cv2.boxPoints(((x, y), (2 * a, 2 * b), angle)).astype(np.int32)
                cv2.fillConvexPoly(image, corners, colour, cv2.LINE_AA)
            case 2:
                points = rng.integers(-largest, largest, (3, 2)) + np.array([x, y])
                cv2.fillConvexPoly(image, points.astype(np.int32), colour, cv2.LINE_AA)
            case _:
                end = float(rng.uniform(60, 300))
                cv2.ellipse(
                    image, (x, y), (a, b), angle, 0, end, colour, int(rng.integers(1, 6)), cv2.LINE_AA
                )


def place(rng: Rng, image: np.ndarray, label: int, size: float) -> SceneObject:
    """Draw one object into the image, wholly inside. Returns it without its colour.

    size: the longer side of the upright object in pixels.
    """
    angle = float(rng.uniform(-40, 40))
    drawn = turned(sprites(LABELS[label]), size, angle)
    top = int(rng.integers(MARGIN, image.shape[0] - drawn.shape[0] - MARGIN))
    left = int(rng.integers(MARGIN, image.shape[1] - drawn.shape[1] - MARGIN))
    mask = paste(rng, image, drawn, top, left)
    return SceneObject(label, mask_box(mask), mask, angle, size, (0, 0, 0))  # `_visible` sets the colour


def turned(sizes: Sequence[np.ndarray], size: float, angle: float) -> np.ndarray:
    """A sprite whose longer side is `size` pixels, turned by `angle` degrees: (h, w, 4) premultiplied RGBA.

    sizes: the sprite at full, three-quarter and half size.
    """
    full, three_quarter, half = sizes
    ratio = size / max(full.shape[:2])
    source = full if ratio > 0.75 else three_quarter if ratio > 0.5 else half
    scale = size / max(source.shape[:2])
    turn = cv2.getRotationMatrix2D((source.shape[1] / 2, source.shape[0] / 2), angle, scale)
    h, w = source.shape[:2]
    out_w = int(np.ceil(abs(turn[0, 0]) * w + abs(turn[0, 1]) * h)) + 2
    out_h = int(np.ceil(abs(turn[0, 1]) * w + abs(turn[0, 0]) * h)) + 2
    turn[:, 2] += (out_w / 2 - w / 2, out_h / 2 - h / 2)
    return cv2.warpAffine(source, turn, (out_w, out_h), flags=cv2.INTER_LINEAR)


def paste(rng: Rng, image: np.ndarray, drawn: np.ndarray, top: int, left: int) -> np.ndarray:
    """Draw a turned sprite into the image under a random light. Returns the mask (H, W) of its pixels."""
    height, width = drawn.shape[:2]
    gain = rng.uniform(0.82, 1.12) * rng.uniform(0.9, 1.1, 3)
    alpha = drawn[..., 3:]
    region = image[top : top + height, left : left + width]
    blended = region * (1 - alpha) + np.minimum(drawn[..., :3] * gain, alpha) * 255
    image[top : top + height, left : left + width] = blended.astype(np.uint8)
    mask = np.zeros(image.shape[:2], bool)
    mask[top : top + height, left : left + width] = alpha[..., 0] > 0.5
    return mask


def draw(
    split: str,
    index: int,
    height: int = 224,
    width: int = 224,
    objects: int = 1,
    labels: Sequence[int] = (),
) -> Scene:
    """The scene with this number in this split. The same arguments always give the same scene.

    labels: the classes of its objects; by default, `objects` classes that the number decides.
    """
    rng = scene_rng(split, index)
    kind, image = background(rng, split, height, width)
    clutter(rng, image, int(rng.integers(3, 11)), largest=34)
    side = min(height, width)
    # Consecutive numbers cycle through the classes, so that all are equally frequent.
    labels = labels or [(index * objects + i) % len(LABELS) for i in range(objects)]
    placed = [place(rng, image, label, float(rng.uniform(0.21, 0.54)) * side) for label in labels]
    image = lit(rng, image)
    return Scene(image, tuple(_visible(placed, image)), kind)


def lit(rng: Rng, image: np.ndarray) -> np.ndarray:
    """The image under a random light, with sensor noise."""
    height, width = image.shape[:2]
    noise = rng.normal(0, rng.uniform(0, 5), (height // 2, width // 2, 1)).astype(np.float32)
    noise = cv2.resize(noise, (width, height), interpolation=cv2.INTER_LINEAR)[..., None]
    return np.clip(image * rng.uniform(0.8, 1.15) + noise, 0, 255).astype(np.uint8)


def _visible(placed: list[SceneObject], image: np.ndarray) -> list[SceneObject]:
    """The visible part of each object in the finished image: later objects cover earlier ones."""
    visible: list[SceneObject] = []
    cover = np.zeros_like(placed[0].mask)
    for item in reversed(placed):
        mask = item.mask & ~cover
        cover |= item.mask
        if mask.any():
            red, green, blue = (int(c) for c in image[mask].mean(0))
            visible.append(replace(item, mask=mask, box=mask_box(mask), colour=(red, green, blue)))
    return visible[::-1]


def mask_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a mask; right and bottom exclusive."""
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1
