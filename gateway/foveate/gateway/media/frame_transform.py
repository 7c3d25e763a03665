"""A decoded frame as people see it: in RGB, upright, its pixels square."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace, VideoReformatter
from PIL import Image

from foveate.gateway.media.image import Pixels, Size
from foveate.gateway.media.video_demuxer import VideoDemuxer

Box = tuple[float, float, float, float]
"""Left, top, right, bottom of an upright frame."""

UNSPECIFIED, HD_HEIGHT = 2, 720
"""A frame that names no colour matrix is taken for BT.709 from this height on, as players do."""
MAX_STRETCH = 8
"""Pixels that claim to be further from square are taken for square."""


@dataclass(frozen=True, slots=True)
class FrameTransform:
    """A frame in RGB that still lies as its file stores it."""

    image: Image.Image
    size: Size
    """As it is shown: upright, in square pixels."""
    at_s: float
    """When, from the clip's start."""
    turned: bool = False
    """Its rows are shown as columns."""
    mirrored: bool = False
    upended: bool = False
    """It is flipped left to right, or upside down, once it has been turned."""

    def cut(self, box: Box, size: Size, side: int, resample: Image.Resampling) -> Pixels:
        """(side, side, 3): a box of an upright frame that measures `size`."""
        left, top, right, bottom = (at / whole for at, whole in zip(box, (*size, *size), strict=True))
        if self.mirrored:
            left, right = 1 - right, 1 - left
        if self.upended:
            top, bottom = 1 - bottom, 1 - top
        if self.turned:
            left, top, right, bottom = top, left, bottom, right
        width, height = self.image.size
        inside = max(0, left * width), max(0, top * height), min(1, right) * width, min(1, bottom) * height
        return self._turn(np.asarray(self.image.resize((side, side), resample, inside)))

    def upright(self) -> Image.Image:
        """All of it."""
        stored = self.size[::-1] if self.turned else self.size
        image = (
            self.image if self.image.size == stored else self.image.resize(stored, Image.Resampling.BICUBIC)
        )
        return Image.fromarray(self._turn(np.asarray(image)))

    def _turn(self, pixels: Pixels) -> Pixels:
        pixels = pixels.transpose(1, 0, 2) if self.turned else pixels
        return np.ascontiguousarray(pixels[:: -1 if self.upended else 1, :: -1 if self.mirrored else 1])


class FrameConverter:
    """Makes views of one reel's frames."""

    def __init__(self, reel: VideoDemuxer) -> None:
        self._reel, self._scaler = reel, VideoReformatter()
        self._frame: VideoFrame | None = None
        self._view: FrameTransform | None = None

    def view(self, at: int, frame: VideoFrame) -> FrameTransform:
        """The same view again for the same frame. Raises ClipTooLarge."""
        if self._view is None or frame is not self._frame:
            self._frame, self._view = frame, None  # one at a time
            turned, mirrored, upended = orientation(frame)
            width, height = frame.width, max(1, frame.height)
            size = max(1, round(width * self._stretch())), height
            size = size[::-1] if turned else size
            self._reel.check(*size)
            at_s = max(0.0, float((at - self._reel.start) * self._reel.unit))
            self._view = FrameTransform(self._rgb(frame), size, at_s, turned, mirrored, upended)
        return self._view

    def _rgb(self, frame: VideoFrame) -> Image.Image:
        matrix = None
        if frame.colorspace == UNSPECIFIED:
            matrix = Colorspace.ITU709 if frame.height >= HD_HEIGHT else Colorspace.ITU601
        rgb = self._scaler.reformat(frame, format="rgb24", src_colorspace=matrix, threads=1)
        plane = rgb.planes[0]
        data = np.frombuffer(memoryview(plane), np.uint8)
        return Image.frombuffer("RGB", (rgb.width, rgb.height), data, "raw", "RGB", plane.line_size, 1)

    def _stretch(self) -> float:
        """How much wider than high its pixels are; the file's header goes before the stream's own."""
        stream = self._reel.stream
        ratio = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or 1
        return float(ratio) if 1 / MAX_STRETCH <= ratio <= MAX_STRETCH else 1.0


def orientation(frame: VideoFrame) -> tuple[bool, bool, bool]:
    """Whether it is turned, mirrored and upended, in that order, by the display matrix of its file.

    Of ISO/IEC 14496-12's matrix (a b u, c d v, x y w), row by row, a point moves to (ax + cy, bx + dy). What
    turns by anything but quarters is taken for the nearest.
    """
    found = cast("Mapping[str, Any]", frame.side_data).get("DISPLAYMATRIX")
    if found is None:
        return False, False, False
    matrix = np.frombuffer(found, np.int32).astype(np.int64)
    (a, b), (c, d) = matrix[0:2], matrix[3:5]
    if abs(b) + abs(c) > abs(a) + abs(d):
        return True, bool(c < 0), bool(b < 0)
    return False, bool(a < 0), bool(d < 0)
