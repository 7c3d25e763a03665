"""Clips in every supported container and codec, and hostile files, for tests of video decoding.

Each frame has one bright cell in a grid. The index of the cell is the frame's number.
"""

import io
import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.audio.stream import AudioStream
from av.video.stream import VideoStream

from foveate.gateway.media.image import Pixels

COLUMNS, ROWS, CELL = 20, 12, 16
SIZE = COLUMNS * CELL, ROWS * CELL
DARK, BRIGHT = (30, 40, 60), (230, 220, 200)
QUIET = {
    "libx265": {"x265-params": "log-level=none:keyint=12:pools=1"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8"},
}
QUIET |= {"libvpx": QUIET["libvpx-vp9"], "libx264": {"preset": "veryfast"}}


FRAGMENTED = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}


class Pipe:
    """The output of a live recorder. It cannot seek back to complete the header."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.touch()

    def write(self, data: bytes) -> int:
        with self._path.open("ab") as file:
            return file.write(data)


def numbered(number: int, size: tuple[int, int] = SIZE) -> Pixels:
    """(height, width, 3): the frame of this number. After the last cell, numbers start again at the first."""
    pixels = np.full((size[1], size[0], 3), DARK, np.uint8)
    row, column = divmod(number % (COLUMNS * ROWS), COLUMNS)
    rows = np.array_split(np.arange(size[1]), ROWS)[row]
    columns = np.array_split(np.arange(size[0]), COLUMNS)[column]
    pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = BRIGHT
    return pixels


def number_of(pixels: Pixels) -> int:
    """The number of the frame that these pixels show, at any size."""
    rows = np.array_split(pixels.astype(float).mean(2), ROWS)
    return int(np.argmax([cell.mean() for row in rows for cell in np.array_split(row, COLUMNS, 1)]))


def clip(
    codec: str = "libx264",
    container: str = "mp4",
    count: int = 60,
    *,
    rate: int = 25,
    times_ms: Sequence[int] | None = None,
    size: tuple[int, int] = SIZE,
    gop: int = 12,
    options: dict[str, str] | None = None,
    muxing: dict[str, str] | None = None,
    draw: Callable[[int], Pixels] = numbered,
    rotation: tuple[int, bool] | None = None,
    ratio: Fraction | None = None,
    live: bool = False,
    matrix: int = 5,
    full: bool = False,
    tagged: bool = False,
    primaries: int = 2,
    transfer: int = 2,
) -> bytes:
    """A clip of numbered frames.

    rotation: degrees counter-clockwise, and whether the frame is flipped after that. matrix: colour matrix, 1
    for BT.709, 5 for BT.601. full: full colour range. tagged: write matrix and range to the file, with
    primaries and transfer characteristics.
    """
    os.environ.setdefault("SVT_LOG", "0")  # otherwise SVT-AV1 prints its version
    path = Path(tempfile.mkdtemp(), "clip")
    with av.open(Pipe(path) if live else path, "w", container, options=muxing or {}) as output:
        video = output.add_stream(codec, rate=rate, options=QUIET.get(codec, {}) | (options or {}))
        assert isinstance(video, VideoStream)
        video.width, video.height = size
        video.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        video.codec_context.gop_size = gop
        video.codec_context.thread_count = 1
        unit = Fraction(1, rate) if times_ms is None else Fraction(1, 1000)
        video.codec_context.time_base = unit
        if rotation:
            video.set_display_rotation(rotation[0], hflip=rotation[1])
        if tagged:
            video.codec_context.colorspace, video.codec_context.color_range = matrix, 1 + full
            video.codec_context.color_primaries, video.codec_context.color_trc = primaries, transfer
        if ratio:
            video.codec_context.sample_aspect_ratio = ratio
        for number in range(count):
            pixels = draw(number) if draw is not numbered else numbered(number, size)
            frame = av.VideoFrame.from_ndarray(pixels).reformat(
                format=video.pix_fmt, dst_colorspace=matrix, dst_color_range=1 + (full or codec == "mjpeg")
            )
            frame.pts, frame.time_base = (times_ms[number] if times_ms else number), unit
            output.mux(video.encode(frame))
        output.mux(video.encode(None))
    if codec == "libsvtav1":  # as root it gives the thread real-time priority, and all others wait for it
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    data = path.read_bytes()
    shutil.rmtree(path.parent)
    return data


def sound() -> bytes:
    """An MP4 without video."""
    file = io.BytesIO()
    with av.open(file, "w", "mp4") as output:
        track = output.add_stream("aac", rate=16000)
        assert isinstance(track, AudioStream)
        for number in range(16):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            frame.sample_rate, frame.pts = 16000, number * 1024
            output.mux(track.encode(frame))
        output.mux(track.encode(None))
    return file.getvalue()


def spliced(*clips: bytes) -> bytes:
    """The coded frames of these WebM clips, one clip after another, under the header of the first."""
    file, at = io.BytesIO(), 0
    with av.open(file, "w", "webm") as output:
        into: VideoStream | None = None
        for data in clips:
            with av.open(io.BytesIO(data), "r", "matroska") as source:
                into = into or output.add_stream_from_template(source.streams.video[0])
                for number, packet in enumerate(p for p in source.demux(video=0) if p.size):
                    packet.pts = packet.dts = at + number * 40
                    packet.stream = into
                    output.mux(packet)
            at += (number + 1) * 40
    return file.getvalue()


def patched(data: bytes, name: bytes, offset: int, value: bytes) -> bytes:
    """The data with other bytes at an offset from the first occurrence of a name."""
    at = data.index(name) + offset
    return data[:at] + value + data[at + len(value) :]


def box(name: bytes, inside: bytes) -> bytes:
    """A box of an MP4."""
    return struct.pack(">I", 8 + len(inside)) + name + inside


def with_hidden_box(name: bytes, inside: bytes) -> bytes:
    """An MP4 with this box hidden in its user data."""
    data = clip(count=3, muxing={"movflags": "faststart"})
    at = data.index(b"moov") - 4
    length = int.from_bytes(data[at : at + 4], "big")
    hidden = box(b"udta", box(name, inside))
    moov = struct.pack(">I", length + len(hidden)) + data[at + 4 : at + length] + hidden
    return data[:at] + moov + data[at + length :]


def claimed_samples(count: int) -> bytes:
    """An MP4 of three frames whose tables claim `count` frames of one byte each."""
    data = patched(clip(count=3), b"stsz", 8, struct.pack(">II", 1, count))
    data = patched(data, b"stsc", 8, struct.pack(">IIII", 1, 1, count, 1))
    return patched(data, b"stts", 12, struct.pack(">I", count))


def claimed_run(count: int) -> bytes:
    """A fragmented MP4, one fragment of which claims `count` equal frames."""
    data = clip(count=12, muxing=FRAGMENTED)
    return patched(data, b"trun", 5, b"\0\0\1" + struct.pack(">I", count))


SAMPLES = {
    "mp4": lambda: clip(count=30, gop=10),
    "fragments": lambda: clip(count=30, muxing=FRAGMENTED),
    "hevc": lambda: clip("libx265", count=30),
    "mkv": lambda: clip(container="matroska", count=30),
    "vp9": lambda: clip("libvpx-vp9", "webm", 30),
    "vp8": lambda: clip("libvpx", "webm", 30, live=True),
    "avi": lambda: clip("mpeg4", "avi", 30, options={"bf": "2"}),
    "avi h264": lambda: clip(container="avi", count=30),
    "mjpeg": lambda: clip("mjpeg", "avi", 12),
    "mov": lambda: clip("mjpeg", "mov", 12),
}
