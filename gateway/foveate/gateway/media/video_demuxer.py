"""A video file, opened with libav so that it can reach nothing else, and read within limits."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from types import TracebackType
from typing import Any, NoReturn, Self

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.stream import Discard, Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from foveate.core.errors import BrokenMedia, ClipTooLarge, UnsupportedMedia
from foveate.core.settings import MIB
from foveate.gateway.media.video_bitstream import check_pieces, prefix_of
from foveate.gateway.media.video_container import MAX_HEADER, Source, inspect

CODECS = ("h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "mjpeg")
OPTIONS = {
    # Headers tell enough. While libav opens a file it would decode without any of the limits set below.
    "codec_whitelist": "none",
    "protocol_whitelist": "none",
    "enable_drefs": "0",
    "use_absolute_path": "0",
    "ignore_chapters": "1",
    "max_streams": "64",
    "probesize": "1000000",
    "fpsprobesize": "0",
}
BUFFER = 65536
GEN_PTS = 1
REORDER = {"h264": 16, "hevc": 16, "mpeg4": 1}
"""How many frames these may store ahead of one that is shown before them; others store them as shown."""
MAX_FRAME = 32 * MIB
MAX_PACKETS, MAX_DECODED = 1_000_000, 50_000


@dataclass(frozen=True, slots=True)
class ClipLimits:
    """What is refused."""

    max_s: float = 3600.0
    max_pixels: int = 4096 * 2304
    """Width x height of a frame, as stored and as shown."""
    decode_s: float = 20.0
    """By the clock, from the first look at the file."""


class VideoDemuxer:
    """The video of one file: its coded frames in the order in which they are stored, and its decoder.

    For one thread at a time. Every method raises BrokenMedia, UnsupportedMedia or ClipTooLarge.
    """

    def __init__(self, source: Source, limits: ClipLimits) -> None:
        self.limits, self.decoded = limits, 0
        self.source, self._packets_left = source, MAX_PACKETS
        self.kind = inspect(source)
        self.cut = not self.kind.complete
        """There should be more of the file than there is."""
        self._open()
        self.start, self.end = self._span()
        if (self.end - self.start) * self.unit > limits.max_s:
            raise ClipTooLarge(f"the clip lasts over {limits.max_s:g} s, the longest that is read here")
        if self._live or self.kind.demuxer == "matroska":
            self._find_index()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._container.close()

    def reopen(self) -> None:
        """Back to the beginning, without a seek."""
        self.close()
        self._open()

    def _open(self) -> None:
        self.source.seek(0)
        self.source.allow(MAX_HEADER)
        demuxer = self.kind.demuxer
        container = av.open(
            self.source, "r", demuxer, container_options=OPTIONS | {"format_whitelist": demuxer},
            metadata_errors="ignore", buffer_size=BUFFER, io_open=_refuse,
        )  # fmt: skip
        self._container: InputContainer = container
        # libav would hold all of a file without timestamps, waiting for the first one.
        container.flags &= ~GEN_PTS
        self.stream = self._choose()
        self.unit = self.stream.time_base or Fraction(0)
        """Seconds that one step of a timestamp takes."""
        if self.unit <= 0:
            raise BrokenMedia("the clip has no clock")
        self._packets = self._demux()

    def _choose(self) -> VideoStream:
        """The first video; what else there is, is never read."""
        videos = [s for s in self._container.streams.video if not s.disposition & Disposition.attached_pic]
        if not videos and self.cut:
            raise BrokenMedia("the clip is cut off within its header")
        if not videos:
            raise UnsupportedMedia("the file holds no video")
        chosen = videos[0]
        for stream in self._container.streams:
            if stream is not chosen:
                stream.discard = Discard.all
        codec = chosen.codec_context
        self.codec = codec.codec.canonical_name if codec else "unknown"
        if self.codec not in CODECS:
            raise UnsupportedMedia(f"{self.codec} video is not read here; send H.264, HEVC, VP8, VP9 or AV1")
        self.check(codec.width, codec.height)
        self._prefix = prefix_of(self.codec, codec.extradata)
        # What only the stream itself claims is found out with its first frame. That libav allocates, if it is
        # not much larger than allowed.
        codec.options = {"max_pixels": str(self.limits.max_pixels * 4)}
        if self.codec == "h264":
            # Where a stream does not say by how much its frames are out of order, assume the most its level
            # allows rather than a guess from the first frames.
            codec.options |= {"strict": "1"}
        codec.thread_count = 1
        return chosen

    @property
    def duration_s(self) -> float:
        return float((self.end - self.start) * self.unit)

    def check(self, width: float, height: float) -> None:
        """Raises ClipTooLarge."""
        if width * height > self.limits.max_pixels:
            size = f"{width:.0f} x {height:.0f}"
            raise ClipTooLarge(
                f"the clip is {size} pixels; at most {self.limits.max_pixels} a frame are read here"
            )

    def _span(self) -> tuple[int, int]:
        """When the first frame is shown, and when the last one ends."""
        length = self.stream.duration
        if length is None and self._container.duration is not None:
            length = int(Fraction(self._container.duration, av.time_base) / self.unit)
        self._live = self.kind.fragmented or length is None or length <= 0
        if length is not None and not self._live:
            start = self.stream.start_time or 0
            if self.kind.demuxer == "avi" and (packet := self.read()):
                start = self.when(packet)
                self.reopen()
            return start, start + length
        # Recorded live, it has to be read to its end once, though not decoded.
        first = last = None
        while packet := self.read():
            at = self.when(packet)
            end = at + (packet.duration or 0)
            first = at if first is None else min(first, at)
            last = end if last is None else max(last, end)
        if first is None or last is None:
            raise BrokenMedia("the clip holds no frames")
        return first, last

    def _find_index(self) -> None:
        """Matroska keeps its index at the end, or keeps none: then libav makes one while it looks for it."""
        try:
            self.seek(self.end)
            self.seek(self.start)
        except FFmpegError:
            self.reopen()

    def _demux(self) -> "Iterator[Packet[VideoStream]]":
        # The last one is empty, and so are frames that an AVI drops; to a decoder both mean the end.
        return (packet for packet in self._container.demux(self.stream) if packet.size)

    def read(self) -> "Packet[VideoStream] | None":
        """The next coded frame; None at the end, and from where on the file cannot be read."""
        self.source.allow(MAX_FRAME)
        try:
            packet = next(self._packets, None)
        except FFmpegError:
            packet, self.cut = None, True
        self.source.check()
        self._packets_left -= 1
        if self._packets_left < 0:
            raise ClipTooLarge(f"the clip has more than {MAX_PACKETS} frames to read through")
        return packet

    @property
    def timeless(self) -> bool:
        """Nobody knows when frames are shown: AVI keeps no times, and what libav makes up for these codecs
        is wrong where frames are stored out of order."""
        return self.kind.demuxer == "avi" and self.codec in REORDER

    def when(self, packet: "Packet[VideoStream]") -> int:
        """When a coded frame is shown; where that is unknown, when it would be were it shown as stored."""
        at = packet.dts if packet.pts is None or self.timeless else packet.pts
        if at is None:
            raise BrokenMedia("the clip does not say when its frames are shown")
        return at

    def seek(self, at: int) -> None:
        """To the last frame stored whole before a time, or near it; raises FFmpegError where that fails."""
        self.source.allow(2 * self.source.size)  # without an index, by reading on
        self._container.seek(at, stream=self.stream)
        self._packets = self._demux()
        self.source.check()

    def whole_before(self, at: int) -> int | None:
        """When the last frame before a time is that is stored whole, as far as an index tells."""
        entries = self.stream.index_entries
        place = entries.search_timestamp(at)
        return entries[place].timestamp if place >= 0 else None

    def decode(self, packet: "Packet[VideoStream] | None", skip: bool = False) -> list[VideoFrame]:
        """The frames that come out; None asks for the last ones. `skip`: it need not come out itself."""
        if packet and skip and self.codec == "mjpeg":
            return []  # nothing builds on it
        if packet:
            check_pieces(self.codec, bytes(packet), self._prefix)
            if packet.has_sidedata("new_extradata"):
                raise UnsupportedMedia("the clip changes its coding midway, which is not read here")
        codec = self.stream.codec_context
        # dav1d looks at this only once, when it is opened.
        codec.skip_frame = "NONREF" if skip and self.codec != "av1" else "DEFAULT"
        frames = codec.decode(packet)
        self.source.check()
        self.decoded += len(frames)
        if self.decoded > MAX_DECODED:
            raise ClipTooLarge(f"more than {MAX_DECODED} frames would have to be decoded")
        for frame in frames:
            self.check(frame.width, frame.height)
        return frames


def _refuse(url: str, flags: int, options: dict[str, Any]) -> NoReturn:
    raise PermissionError("a clip is one file")
