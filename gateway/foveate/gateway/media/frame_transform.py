"""Decoded video frames in RGB, upright, with square pixels."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace, VideoReformatter
from PIL import Image

from foveate.gateway.media.color_primaries import coded_profile
from foveate.gateway.media.color_profile import ColorConversion, conversion_to_srgb
from foveate.gateway.media.image import Pixels
from foveate.gateway.media.image_format import Size
from foveate.gateway.media.video_demuxer import VideoDemuxer

FrameBox = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels of an upright frame."""

UNSPECIFIED, HD_HEIGHT = 2, 720
"""A frame that names no colour matrix is read as BT.709 from this height on, as video players do."""
MAX_PIXEL_ASPECT = 8
"""Pixels that claim a more extreme aspect ratio are read as square."""


@dataclass(frozen=True, slots=True)
class ConvertedFrame:
    """A frame in RGB, in the orientation and with the primaries in which its file stores it."""

    image: Image.Image
    size: Size
    """Width and height of the upright frame, in square pixels."""
    at_s: float
    """Presentation time in seconds from the start of the video."""
    transposed: bool = False
    """Whether rows of `image` are columns of the upright frame."""
    flip_x: bool = False
    flip_y: bool = False
    """Whether the frame, after any transposition, is flipped left to right, or top to bottom."""
    conversion: ColorConversion | None = None
    """The conversion to sRGB, for wide gamuts and for HDR."""

    def crop(self, box: FrameBox, size: Size, side: int, resample: Image.Resampling) -> Pixels:
        """A box of the upright frame, whose width and height are `size`, as (side, side, 3) pixels."""
        left, top, right, bottom = (at / whole for at, whole in zip(box, (*size, *size), strict=True))
        if self.flip_x:
            left, right = 1 - right, 1 - left
        if self.flip_y:
            top, bottom = 1 - bottom, 1 - top
        if self.transposed:
            left, top, right, bottom = top, left, bottom, right
        width, height = self.image.size
        stored_box = (
            max(0, left * width),
            max(0, top * height),
            min(1, right) * width,
            min(1, bottom) * height,
        )
        return self._to_upright(self.image.resize((side, side), resample, stored_box))

    def upright(self) -> Image.Image:
        """The whole upright frame."""
        stored = self.size[::-1] if self.transposed else self.size
        image = (
            self.image if self.image.size == stored else self.image.resize(stored, Image.Resampling.BICUBIC)
        )
        return Image.fromarray(self._to_upright(image))

    def _to_upright(self, image: Image.Image) -> Pixels:
        """A resized part of the frame in sRGB, upright."""
        pixels = np.asarray(self.conversion.apply(image) if self.conversion else image)
        pixels = pixels.transpose(1, 0, 2) if self.transposed else pixels
        return np.ascontiguousarray(pixels[:: -1 if self.flip_y else 1, :: -1 if self.flip_x else 1])


class FrameConverter:
    """Converts the frames of one video to RGB."""

    def __init__(self, demuxer: VideoDemuxer) -> None:
        self._demuxer, self._reformatter = demuxer, VideoReformatter()
        self._frame: VideoFrame | None = None
        self._converted: ConvertedFrame | None = None

    def convert(self, at: int, frame: VideoFrame) -> ConvertedFrame:
        """The frame in RGB. `at`: its presentation time in the demuxer's time base.

        The same frame again gives the same object again. Raises ClipTooLarge.
        """
        if self._converted is None or frame is not self._frame:
            self._frame, self._converted = frame, None  # frees the last one: only one is held at a time
            transposed, flip_x, flip_y = orientation(frame)
            width, height = frame.width, max(1, frame.height)
            size = max(1, round(width * self._pixel_aspect())), height
            size = size[::-1] if transposed else size
            self._demuxer.check_size(*size)
            at_s = max(0.0, float((at - self._demuxer.start) * self._demuxer.time_base))
            conversion = conversion_to_srgb(coded_profile(frame.color_primaries, frame.color_trc), "RGB")
            self._converted = ConvertedFrame(
                self._rgb(frame), size, at_s, transposed, flip_x, flip_y, conversion
            )
        return self._converted

    def _rgb(self, frame: VideoFrame) -> Image.Image:
        matrix = None
        if frame.colorspace == UNSPECIFIED:
            matrix = Colorspace.ITU709 if frame.height >= HD_HEIGHT else Colorspace.ITU601
        rgb = self._reformatter.reformat(frame, format="rgb24", src_colorspace=matrix, threads=1)
        plane = rgb.planes[0]
        data = np.frombuffer(memoryview(plane), np.uint8)
        return Image.frombuffer("RGB", (rgb.width, rgb.height), data, "raw", "RGB", plane.line_size, 1)

    def _pixel_aspect(self) -> float:
        """Width of a pixel over its height. The container's value takes precedence over the stream's."""
        stream = self._demuxer.stream
        ratio = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or 1
        return float(ratio) if 1 / MAX_PIXEL_ASPECT <= ratio <= MAX_PIXEL_ASPECT else 1.0


def orientation(frame: VideoFrame) -> tuple[bool, bool, bool]:
    """Whether a frame is transposed, flipped left to right and flipped top to bottom, in that order.

    Read from the display matrix of ISO/IEC 14496-12, (a b u, c d v, x y w) row by row: a point moves to
    (ax + cy, bx + dy). A rotation by any other angle than a multiple of 90 degrees is rounded to one.
    """
    side_data = cast("Mapping[str, Any]", frame.side_data).get("DISPLAYMATRIX")
    if side_data is None:
        return False, False, False
    matrix = np.frombuffer(side_data, np.int32).astype(np.int64)
    (a, b), (c, d) = matrix[0:2], matrix[3:5]
    if abs(b) + abs(c) > abs(a) + abs(d):
        return True, bool(c < 0), bool(b < 0)
    return False, bool(a < 0), bool(d < 0)
