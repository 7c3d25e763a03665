"""Untrusted video bytes in, a clip model's input pixels out."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from foveate.core.errors import BrokenMedia, FoveateError
from foveate.gateway.media.frame_seeker import FrameSeeker
from foveate.gateway.media.frame_transform import Box, FrameConverter, FrameTransform
from foveate.gateway.media.image import FILTERS, Pixels, Size
from foveate.gateway.media.video_container import Source
from foveate.gateway.media.video_demuxer import ClipLimits, VideoDemuxer


@dataclass(frozen=True, slots=True)
class Clip:
    """What a clip model is fed, and where it came from."""

    pixels: Pixels
    """(W, T, S, S, 3): of each of W boxes, the T sampled frames in RGB."""
    at_s: tuple[float, ...]
    """When each sampled frame is shown, in seconds from the clip's start."""
    duration_s: float
    size: Size
    """Of an upright frame, in square pixels."""
    decoded: int
    """Frames that were decoded to get these."""


def decode_clip(
    source: bytes | Path,
    frames: int,
    side: int,
    boxes: Callable[[Size], Sequence[Box]],
    interpolation: Literal["bilinear", "bicubic"],
    limits: ClipLimits,
    only: Collection[int] | None = None,
) -> Clip:
    """Each frame is the one shown in the middle of an equal span of the clip; shorter clips repeat some. Of
    each the boxes are cut out and resized to `side` x `side`. One frame at a time is held in full.

    only: the frames, counted from 0, that will be looked at; the others are left black, and not decoded for
    their own sake. None: all.

    Safe to call from many threads. Raises UnsupportedMedia for what is not read here, ClipTooLarge past the
    limits, and BrokenMedia for anything else that does not decode.
    """
    with _opened(source, limits) as reel:
        size, places = (0, 0), tuple[Box, ...]()
        pixels = np.empty((0, frames, side, side, 3), np.uint8)
        at_s = [(2 * number + 1) * reel.duration_s / (2 * frames) for number in range(frames)]
        last: FrameTransform | None = None
        before = 0
        for number, view in _views(reel, frames, range(frames) if only is None else sorted(only)):
            if last is None:
                size, places = view.size, tuple(boxes(view.size))
                pixels = np.zeros((len(places), frames, side, side, 3), np.uint8)
            if view is last:
                pixels[:, number] = pixels[:, before]
            else:
                for window, box in enumerate(places):
                    pixels[window, number] = view.cut(box, size, side, FILTERS[interpolation])
            at_s[number] = view.at_s
            last, before = view, number
        return Clip(pixels, tuple(at_s), reel.duration_s, size, reel.decoded)


def upright_frames(source: bytes | Path, frames: int, limits: ClipLimits) -> Iterator[Image.Image]:
    """The frames that `decode_clip` samples, one by one: RGB, upright, as large as they are shown.

    Raises what it raises.
    """
    with _opened(source, limits) as reel:
        for _, view in _views(reel, frames, range(frames)):
            yield view.upright()


def _views(reel: VideoDemuxer, frames: int, only: Iterable[int]) -> Iterator[tuple[int, FrameTransform]]:
    """What is shown in the middle of some of so many equal spans; the same view again where a frame lasts."""
    with _boundary(reel.source):
        film, viewer = FrameSeeker(reel), FrameConverter(reel)
    for number in only:
        with _boundary(reel.source):
            at, frame = film.shown(reel.start + (2 * number + 1) * (reel.end - reel.start) // (2 * frames))
            view = viewer.view(at, frame)
        yield number, view


@contextmanager
def _opened(source: bytes | Path, limits: ClipLimits) -> Iterator[VideoDemuxer]:
    with Source(source, limits.decode_s) as file:
        with _boundary(file):
            reel = VideoDemuxer(file, limits)
        with reel:
            yield reel


@contextmanager
def _boundary(source: Source) -> Iterator[None]:
    # As in media.py: on hostile files libav's bindings raise nearly anything, and it is the file's fault.
    try:
        yield
    except FoveateError:
        raise
    except Exception as error:
        source.check()
        raise BrokenMedia("the clip is truncated or damaged") from error
