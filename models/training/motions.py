"""Synthetic videos with a known motion: an emoji that moves over a still, cluttered scene."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from training.emoji import sprites
from training.labels import LABELS
from training.scenes import SPLITS, background, clutter
from training.textures import Rng

MARGIN = 0.04
"""Distance of the object from the edges of the video, as a share of its side."""


@dataclass(frozen=True, slots=True)
class Pose:
    """The position and appearance of an object at a time. Lengths are shares of the video's side."""

    x: float = 0.0
    y: float = 0.0
    angle: float = 0.0
    """Degrees, counter-clockwise."""
    scale: float = 1.0
    visible: bool = True


MotionPath = Callable[[float], Pose]
"""The pose at a time from 0 to 1, relative to the object's centre."""


def _stays(rng: Rng) -> MotionPath:
    return lambda _: Pose()


def _slides(dx: int, dy: int) -> Callable[[Rng], MotionPath]:
    def make(rng: Rng) -> MotionPath:
        far = rng.uniform(0.25, 0.5)
        return lambda t: Pose(dx * far * (t - 0.5), dy * far * (t - 0.5))

    return make


def _grows(sign: int) -> Callable[[Rng], MotionPath]:
    def make(rng: Rng) -> MotionPath:
        rate = sign * rng.uniform(0.55, 0.9)
        return lambda t: Pose(scale=math.exp(rate * (t - 0.5)))

    return make


def _turns(sign: int) -> Callable[[Rng], MotionPath]:
    def make(rng: Rng) -> MotionPath:
        whole = sign * rng.uniform(130, 320)
        return lambda t: Pose(angle=whole * t)

    return make


def _swings(rng: Rng) -> MotionPath:
    reach, times, phase = rng.uniform(0.07, 0.17), rng.uniform(1.5, 3), rng.uniform(0, 2 * math.pi)
    return lambda t: Pose(x=reach * math.sin(2 * math.pi * times * t + phase))


def _bounces(rng: Rng) -> MotionPath:
    high, times, phase = rng.uniform(0.15, 0.35), rng.uniform(2, 4), rng.uniform(0, math.pi)
    return lambda t: Pose(y=high * (0.5 - abs(math.sin(math.pi * times * t + phase))))


def _circles(rng: Rng) -> MotionPath:
    radius, turns = rng.uniform(0.1, 0.19), rng.choice([-1, 1]) * rng.uniform(1, 2)
    phase = rng.uniform(0, 2 * math.pi)

    def path(t: float) -> Pose:
        angle = 2 * math.pi * turns * t + phase
        return Pose(radius * math.cos(angle), radius * math.sin(angle))

    return path


def _blinks(rng: Rng) -> MotionPath:
    times, phase = rng.uniform(2, 3.5), rng.uniform(0, 2 * math.pi)
    return lambda t: Pose(visible=math.sin(2 * math.pi * times * t + phase) > -0.2)


MOTIONS: dict[str, Callable[[Rng], MotionPath]] = {
    "stays": _stays,
    "moves left": _slides(-1, 0),
    "moves right": _slides(1, 0),
    "moves up": _slides(0, -1),
    "moves down": _slides(0, 1),
    "comes closer": _grows(1),
    "goes away": _grows(-1),
    "turns clockwise": _turns(-1),
    "turns anticlockwise": _turns(1),
    "swings": _swings,
    "bounces": _bounces,
    "circles": _circles,
    "blinks": _blinks,
}
NAMES: tuple[str, ...] = tuple(MOTIONS)


class MotionVideo:
    """A video that its split and number decide. Consecutive numbers cycle through the motions.

    Attributes: `side` in pixels, `motion` and `label` as indices into NAMES and LABELS.
    """

    def __init__(self, split: str, index: int, side: int = 112) -> None:
        rng = np.random.default_rng([SPLITS[split], index, 2])
        self.side, self.motion = side, index % len(NAMES)
        _, self._scene = background(rng, split, side, side)
        clutter(rng, self._scene, int(rng.integers(2, 8)), largest=max(6, side // 7))
        self.label = int(rng.integers(len(LABELS)))
        self._size = rng.uniform(0.24, 0.4)
        self._tilt = rng.uniform(-25, 25)
        self._path = MOTIONS[NAMES[self.motion]](rng)
        self._centre = self._draw_centre(rng)
        self._gain = rng.uniform(0.85, 1.1) * rng.uniform(0.93, 1.07, 3)
        self._wobble = rng.uniform(0, 0.006), rng.uniform(0, 2 * math.pi, 3)
        self._noise, self._light = rng.uniform(0, 4), rng.uniform(0.85, 1.1)
        self._seed = int(rng.integers(2**31))

    def _draw_centre(self, rng: Rng) -> tuple[float, float]:
        """A random centre whose path stays inside the video, if there is one."""
        poses = [self._path(t) for t in np.linspace(0, 1, 33).tolist()]
        largest = max(pose.scale for pose in poses) * self._size / 2 + MARGIN
        spans = []
        for along in ([pose.x for pose in poses], [pose.y for pose in poses]):
            low, high = largest - min(along), 1 - largest - max(along)
            spans.append((low, high) if low < high else ((low + high) / 2, (low + high) / 2))
        return float(rng.uniform(*spans[0])), float(rng.uniform(*spans[1]))

    def frame(self, t: float) -> tuple[np.ndarray, np.ndarray]:
        """The frame (S, S, 3) at a time from 0 to 1, and the class of each pixel (S, S): 0 or label + 1."""
        side, pose = self.side, self._path(t)
        image, classes = self._scene.copy(), np.zeros((side, side), np.uint8)
        amount, phases = self._wobble
        sway = [amount * math.sin(5 * t + phase) for phase in phases.tolist()]
        if pose.visible:
            x, y = self._centre[0] + pose.x + sway[0], self._centre[1] + pose.y + sway[1]
            scale = pose.scale * (1 + 2 * sway[2])
            alpha = self._draw(image, x * side, y * side, self._tilt + pose.angle, scale * self._size * side)
            classes[alpha > 0.5] = self.label + 1
        rng = np.random.default_rng([self._seed, round(t * 100_000)])
        noise = rng.normal(0, self._noise, (side, side, 1)).astype(np.float32)
        return np.clip(image * self._light + noise, 0, 255).astype(np.uint8), classes

    def _draw(self, image: np.ndarray, x: float, y: float, angle: float, size: float) -> np.ndarray:
        """Draw the object with its centre at (x, y) into the image. Returns its coverage (S, S), 0 to 1."""
        versions = sprites(LABELS[self.label])
        full_size = max(versions[0].shape[:2])
        version = next((v for v in reversed(versions) if max(v.shape[:2]) >= size), versions[0])
        turn = cv2.getRotationMatrix2D((version.shape[1] / 2, version.shape[0] / 2), angle, 1.0)
        turn *= size / max(version.shape[:2])
        turn[:, 2] = (x, y) - turn[:, :2] @ (version.shape[1] / 2, version.shape[0] / 2)
        shrink = size / full_size
        flags = cv2.INTER_AREA if shrink < 0.3 else cv2.INTER_LINEAR
        drawn = cv2.warpAffine(version, turn, (self.side, self.side), flags=flags)
        alpha = drawn[..., 3:]
        image[:] = image * (1 - alpha) + np.minimum(drawn[..., :3] * self._gain, alpha) * 255
        return np.asarray(alpha[..., 0])

    def frames(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The frames in the middle of `count` equal spans: (T, S, S, 3), and their classes (T, S, S)."""
        frames = [self.frame((i + 0.5) / count) for i in range(count)]
        return np.stack([image for image, _ in frames]), np.stack([classes for _, classes in frames])
