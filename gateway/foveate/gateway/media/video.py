"""Decode untrusted video bytes to the pixels that a video model takes as input."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from foveate.core.errors import BrokenMedia, FoveateError
from foveate.gateway.media.bounded_file import BoundedFile
from foveate.gateway.media.frame_seeker import FrameSeeker
from foveate.gateway.media.frame_transform import ConvertedFrame, FrameBox, FrameConverter
from foveate.gateway.media.image import FILTERS, Pixels
from foveate.gateway.media.image_format import Size
from foveate.gateway.media.video_demuxer import ClipLimits, VideoDemuxer


@dataclass(frozen=True, slots=True)
class Clip:
    """The input of a video model, and where its frames come from."""

    pixels: Pixels
    """(W, T, S, S, 3): the T sampled frames in RGB, for each of W boxes."""
    at_s: tuple[float, ...]
    """Presentation time of each sampled frame, in seconds from the start of the video."""
    duration_s: float
    size: Size
    """Width and height of an upright frame, in square pixels."""
    decoded: int
    """Number of frames that were decoded to get these."""


def decode_clip(
    source: bytes | Path,
    frames: int,
    side: int,
    boxes: Callable[[Size], Sequence[FrameBox]],
    interpolation: Literal["bilinear", "bicubic"],
    limits: ClipLimits,
    only: Collection[int] | None = None,
) -> Clip:
    """Sample the frames shown in the middle of `frames` equal parts of the video.

    A short video repeats frames. Each box of each frame is resized to `side` x `side`. One frame at a time is
    held at its full size.

    boxes: gives the boxes to cut out of each frame, from the frame's size.
    only: numbers of the sampled frames that the model will use, counted from 0. The others stay black and are
    not decoded for their own sake. None: all.

    Safe to call from many threads. Raises UnsupportedMedia for a format that is not supported, ClipTooLarge
    past the limits, and BrokenMedia for any other data that does not decode.
    """
    with _open_demuxer(source, limits) as demuxer:
        size, cut_boxes = (0, 0), tuple[FrameBox, ...]()
        pixels = np.empty((0, frames, side, side, 3), np.uint8)
        at_s = [(2 * number + 1) * demuxer.duration_s / (2 * frames) for number in range(frames)]
        last: ConvertedFrame | None = None
        last_number = 0
        numbers = range(frames) if only is None else sorted(only)
        for number, frame in _sample_frames(demuxer, frames, numbers):
            if last is None:
                size, cut_boxes = frame.size, tuple(boxes(frame.size))
                pixels = np.zeros((len(cut_boxes), frames, side, side, 3), np.uint8)
            if frame is last:
                pixels[:, number] = pixels[:, last_number]
            else:
                for index, box in enumerate(cut_boxes):
                    pixels[index, number] = frame.crop(box, size, side, FILTERS[interpolation])
            at_s[number] = frame.at_s
            last, last_number = frame, number
        return Clip(pixels, tuple(at_s), demuxer.duration_s, size, demuxer.decoded)


def upright_frames(source: bytes | Path, frames: int, limits: ClipLimits) -> Iterator[Image.Image]:
    """The frames that `decode_clip` samples, one by one: RGB, upright, at their own size.

    Raises the errors of `decode_clip`.
    """
    with _open_demuxer(source, limits) as demuxer:
        for _, frame in _sample_frames(demuxer, frames, range(frames)):
            yield frame.upright()


def _sample_frames(
    demuxer: VideoDemuxer, frames: int, numbers: Iterable[int]
) -> Iterator[tuple[int, ConvertedFrame]]:
    """Some of `frames` evenly spaced frames, with their numbers.

    A frame that is shown for longer than one part is the same object again.
    """
    with _decoder_boundary(demuxer.file):
        seeker, converter = FrameSeeker(demuxer), FrameConverter(demuxer)
    length = demuxer.end - demuxer.start
    for number in numbers:
        with _decoder_boundary(demuxer.file):
            at, frame = seeker.frame_at(demuxer.start + (2 * number + 1) * length // (2 * frames))
            converted = converter.convert(at, frame)
        yield number, converted


@contextmanager
def _open_demuxer(source: bytes | Path, limits: ClipLimits) -> Iterator[VideoDemuxer]:
    with BoundedFile(source, limits.decode_s) as file:
        with _decoder_boundary(file):
            demuxer = VideoDemuxer(file, limits)
        with demuxer:
            yield demuxer


@contextmanager
def _decoder_boundary(file: BoundedFile) -> Iterator[None]:
    # As for images: on hostile files libav's bindings raise many types of errors, and the cause is the file.
    try:
        yield
    except FoveateError:
        raise
    except Exception as error:
        file.check()
        raise BrokenMedia("the clip is truncated or damaged") from error
