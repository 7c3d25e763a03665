"""Scenes for questions: one to four emoji without overlap, some recoloured, with their scene graph."""

from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import cv2
import numpy as np

from training.emoji import sprites
from training.labels import LABELS
from training.scenes import MARGIN, SPLITS, background, clutter, lit, mask_box, paste, turned
from training.textures import Rng

SIDE = 224
"""Pixels of a side."""
PATCH = 16
TINTS = {
    "red": (215, 35, 35),
    "orange": (245, 135, 25),
    "yellow": (250, 222, 40),
    "green": (55, 165, 65),
    "blue": (45, 95, 225),
    "purple": (135, 55, 190),
    "pink": (250, 135, 190),
    "grey": (150, 150, 150),
}
TINT_SHARE = 0.3
"""The share of objects that are recoloured. The name of an object would give its colour away otherwise."""
TINT_STRENGTH = 0.6
"""How much of the own colours a tint replaces. Their brightness stays."""
MIN_TINT_CHANGE = 0.13
"""The smallest mean change of a colour channel, in 0..1, by which a tint differs from the own colours."""
NOT_TINTED = ("red apple", "green apple")
SIZES = (0.15, 0.35)
"""The longer side of an upright object, as a share of the image's side."""
GAP = 4
"""Pixels between the boxes of two objects."""
MOST_OBJECTS = 4
SCENE_STREAM = 7
"""Keeps these random seeds apart from those of other scenes."""
NOTHING, PARTLY = -1, -2


@dataclass(frozen=True, slots=True)
class GraphObject:
    """One object of a scene graph."""

    label: int
    box: tuple[int, int, int, int]
    """left, top, right, bottom in pixels, right and bottom exclusive."""
    tint: str | None
    """The name of its colour where it is recoloured."""

    @property
    def centre(self) -> tuple[float, float]:
        """x and y as shares of the image's side."""
        left, top, right, bottom = self.box
        return (left + right) / 2 / SIDE, (top + bottom) / 2 / SIDE

    def to_json(self) -> dict[str, Any]:
        """The object as a JSON table, which `object_from_json` reads."""
        return asdict(self)


def object_from_json(table: dict[str, Any]) -> GraphObject:
    """The object that `GraphObject.to_json` wrote."""
    left, top, right, bottom = table["box"]
    return GraphObject(table["label"], (left, top, right, bottom), table["tint"])


@dataclass(frozen=True, slots=True)
class MultiScene:
    """An image with its scene graph."""

    image: np.ndarray
    """(224, 224, 3) uint8 RGB."""
    objects: tuple[GraphObject, ...]
    owner_map: np.ndarray
    """(224, 224) int8: the object that covers each pixel, or NOTHING."""

    @property
    def owners(self) -> np.ndarray:
        """As `owners_at`, of the image in its own size: (196,) int8."""
        return self.owners_at(SIDE)

    def owners_at(self, side: int) -> np.ndarray:
        """The object that covers a third of each patch or more; else NOTHING, or PARTLY for less.

        side: pixels to which the image is resized. Returns (P,) int8.
        """
        size = (side, side)
        pixels = cv2.resize(self.owner_map, size, interpolation=cv2.INTER_NEAREST_EXACT)
        return _patch_owners(pixels, len(self.objects))


def draw_multi(split: str, index: int) -> MultiScene:
    """The scene with this number in this split. The same arguments always give the same scene."""
    rng = np.random.default_rng([SPLITS[split], index, SCENE_STREAM])
    _, image = background(rng, split, SIDE, SIDE)
    clutter(rng, image, int(rng.integers(3, 11)), largest=34)
    objects: list[GraphObject] = []
    owner = np.full((SIDE, SIDE), NOTHING, np.int8)
    for label in _labels(rng, int(rng.integers(1, MOST_OBJECTS + 1))):
        tints = visible_tints(LABELS[label])
        tint = str(rng.choice(tints)) if tints and rng.random() < TINT_SHARE else None
        _place_apart(rng, image, owner, objects, label, tint)
    return MultiScene(lit(rng, image), tuple(objects), owner)


@cache
def tinted_sprites(label: str, tint: str | None) -> tuple[np.ndarray, ...]:
    """The sprite at three sizes, recoloured: the tint at the brightness of each pixel."""
    if tint is None:
        return sprites(label)
    colour = np.array(TINTS[tint], np.float32) / 255
    recoloured: list[np.ndarray] = []
    for sprite in sprites(label):
        rgb, alpha = sprite[..., :3] / np.maximum(sprite[..., 3:], 1e-3), sprite[..., 3:]
        brightness = rgb @ np.array([0.3, 0.59, 0.11], np.float32)
        low, high = np.percentile(brightness[alpha[..., 0] > 0.5], [5, 95])
        brightness = np.clip((brightness - low) / max(high - low, 0.05), 0, 1)[..., None]
        mixed = TINT_STRENGTH * colour * (0.35 + 0.75 * brightness) + (1 - TINT_STRENGTH) * rgb
        recoloured.append(np.concatenate([np.clip(mixed, 0, 1) * alpha, alpha], -1).astype(np.float32))
    return tuple(recoloured)


@cache
def visible_tints(label: str) -> tuple[str, ...]:
    """The tints that differ from an object's own colours."""
    if label in NOT_TINTED:
        return ()
    own = sprites(label)[2]
    opaque = own[..., 3] > 0.5

    def change(tint: str) -> float:
        return float(np.abs(tinted_sprites(label, tint)[2][..., :3][opaque] - own[..., :3][opaque]).mean())

    return tuple(tint for tint in TINTS if change(tint) > MIN_TINT_CHANGE)


def _labels(rng: Rng, count: int) -> list[int]:
    """The classes of a scene's objects: often one of them several times, or a class beside its neighbour.

    Neighbours in the list of labels often look alike.
    """
    labels: list[int] = rng.choice(len(LABELS), count, replace=False).tolist()
    if count == 1:
        return labels
    luck = rng.random()
    if luck < 0.4:
        for i in range(1, int(rng.integers(2, count + 1))):
            labels[i] = labels[0]
    elif luck < 0.55:
        neighbour = (labels[0] + int(rng.choice([-1, 1]))) % len(LABELS)
        if neighbour not in labels:
            labels[1] = neighbour
    return labels


def _place_apart(
    rng: Rng, image: np.ndarray, owner: np.ndarray, objects: list[GraphObject], label: int, tint: str | None
) -> None:
    """Draw an object where it touches no other one; leave it out if 40 places do not do."""
    low, high = (share * SIDE for share in SIZES)
    size = float(rng.uniform(low, high))
    for _ in range(40):
        drawn = turned(tinted_sprites(LABELS[label], tint), size, float(rng.uniform(-40, 40)))
        height, width = drawn.shape[:2]
        top = int(rng.integers(MARGIN, SIDE - height - MARGIN))
        left = int(rng.integers(MARGIN, SIDE - width - MARGIN))
        if all(_apart(item.box, (left, top, left + width, top + height)) for item in objects):
            mask = paste(rng, image, drawn, top, left)
            owner[mask] = len(objects)
            objects.append(GraphObject(label, mask_box(mask), tint))
            return
        size = max(size * 0.95, low)


def _apart(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    return a[2] + GAP <= b[0] or b[2] + GAP <= a[0] or a[3] + GAP <= b[1] or b[3] + GAP <= a[1]


def _patch_owners(owner: np.ndarray, count: int) -> np.ndarray:
    """(P,) int8 of the pixels' owners (S, S)."""
    grid = len(owner) // PATCH
    cells = owner.reshape(grid, PATCH, grid, PATCH).transpose(0, 2, 1, 3).reshape(grid * grid, PATCH * PATCH)
    owners = np.where((cells >= 0).any(1), PARTLY, NOTHING).astype(np.int8)
    for number in range(count):
        owners[(cells == number).mean(1) >= 1 / 3] = number
    return owners
