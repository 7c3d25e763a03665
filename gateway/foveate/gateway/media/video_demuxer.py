"""Open a video file with libav, without access to any other file or address, and read it within limits."""

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
from foveate.core.settings import DEFAULTS, MIB
from foveate.gateway.media.bounded_file import BoundedFile
from foveate.gateway.media.video_bitstream import check_bitstream_limits, length_prefix_size
from foveate.gateway.media.video_container import (
    HEADER_CPU_S,
    MAX_HEADER,
    MAX_METADATA,
    METADATA_MARKS,
    inspect_container,
)

CODECS = ("h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "mjpeg")
"""Supported codecs, by libav's names."""
OPTIONS = {
    # The headers are enough. While it opens a file, libav would decode without the limits set below.
    "codec_whitelist": "none",
    "protocol_whitelist": "none",
    "enable_drefs": "0",
    "use_absolute_path": "0",
    "ignore_chapters": "1",
    "max_streams": "64",
    "probesize": "1000000",
    "fpsprobesize": "0",
}
BUFFER_BYTES = 65536
GENERATE_PTS = 1
"""libav's flag AVFMT_FLAG_GENPTS."""
REORDER_FRAMES = {"h264": 16, "hevc": 16, "mpeg4": 1}
"""Frames that a codec may store before a frame that is shown earlier. Other codecs store frames in the order
in which they are shown."""
MAX_FRAME_BYTES = 32 * MIB
MAX_PACKETS, MAX_DECODED = 1_000_000, 50_000
"""Coded frames that are read, and frames that are decoded, of one video at most."""


@dataclass(frozen=True, slots=True)
class ClipLimits:
    """Limits on a video. A larger one is refused with ClipTooLarge."""

    max_s: float = DEFAULTS["max_clip_s"]
    """Duration in seconds."""
    max_pixels: int = DEFAULTS["max_video_pixels"]
    """Width x height of a frame, as stored and as shown."""
    decode_s: float = DEFAULTS["clip_decode_s"]
    """Seconds of wall time for reading and decoding, from the opening of the file."""


class VideoDemuxer:
    """The first video stream of a file: its coded frames in stored order, and its decoder.

    For one thread at a time. Every method may raise BrokenMedia, UnsupportedMedia or ClipTooLarge.
    """

    def __init__(self, file: BoundedFile, limits: ClipLimits) -> None:
        self.limits, self.decoded = limits, 0
        self.file, self._packets_left = file, MAX_PACKETS
        self.container = inspect_container(file)
        self.truncated = not self.container.complete
        """Whether a part of the file is missing."""
        self._open()
        self.start, self.end = self._span()
        if (self.end - self.start) * self.time_base > limits.max_s:
            raise ClipTooLarge(f"the clip is longer than {limits.max_s:g} s, the server's limit")
        if self._scanned or self.container.demuxer == "matroska":
            self._find_index()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the demuxer and the decoder."""
        self._av_container.close()

    def reopen(self) -> None:
        """Start again at the beginning of the file, without a seek."""
        self.close()
        self._open()

    def _open(self) -> None:
        self.file.seek(0)
        self.file.allow(MAX_HEADER)
        demuxer = self.container.demuxer
        self.file.start_header(METADATA_MARKS.get(demuxer), MAX_METADATA, HEADER_CPU_S)
        av_container = av.open(
            self.file, "r", demuxer, container_options=OPTIONS | {"format_whitelist": demuxer},
            metadata_errors="ignore", buffer_size=BUFFER_BYTES, io_open=_refuse_open,
        )  # fmt: skip
        self._av_container: InputContainer = av_container
        self.file.end_header()
        # With it, libav would keep all packets of a file without timestamps until the first timestamp.
        av_container.flags &= ~GENERATE_PTS
        self.stream = self._select_stream()
        self.time_base = self.stream.time_base or Fraction(0)
        """Seconds in one unit of a timestamp."""
        if self.time_base <= 0:
            raise BrokenMedia("the clip's header has no time base")
        self._packets = self._demux()

    def _select_stream(self) -> VideoStream:
        """The first video stream. The other streams are never read."""
        videos = [s for s in self._av_container.streams.video if not s.disposition & Disposition.attached_pic]
        if not videos and self.truncated:
            raise BrokenMedia("the clip is truncated within its header")
        if not videos:
            raise UnsupportedMedia("the file has no video stream")
        selected = videos[0]
        for stream in self._av_container.streams:
            if stream is not selected:
                stream.discard = Discard.all
        codec = selected.codec_context
        self.codec = codec.codec.canonical_name if codec else "unknown"
        if self.codec not in CODECS:
            raise UnsupportedMedia(f"{self.codec} video is not supported; send H.264, HEVC, VP8, VP9 or AV1")
        self.check_size(codec.width, codec.height)
        self._prefix_size = length_prefix_size(self.codec, codec.extradata)
        # The stream itself may declare a larger size, known only with its first frame. libav allocates that
        # frame if it is not much larger than the limit.
        codec.options = {"max_pixels": str(self.limits.max_pixels * 4)}
        if self.codec == "h264":
            # Where a stream does not say how far its frames are reordered, assume the maximum of its level
            # instead of a guess from the first frames.
            codec.options |= {"strict": "1"}
        codec.thread_count = 1
        return selected

    @property
    def duration_s(self) -> float:
        """Seconds from the first frame to the end of the last."""
        return float((self.end - self.start) * self.time_base)

    def check_size(self, width: float, height: float) -> None:
        """Raises ClipTooLarge for a frame with too many pixels."""
        if width * height > self.limits.max_pixels:
            size = f"{width:.0f} x {height:.0f}"
            raise ClipTooLarge(
                f"the clip has {size} pixels a frame; the server decodes at most {self.limits.max_pixels}"
            )

    def _span(self) -> tuple[int, int]:
        """Start of the first frame and end of the last one, in the time base."""
        length = self.stream.duration
        if length is None and self._av_container.duration is not None:
            length = int(Fraction(self._av_container.duration, av.time_base) / self.time_base)
        self._scanned = self.container.fragmented or length is None or length <= 0
        if length is not None and not self._scanned:
            start = self.stream.start_time or 0
            if self.container.demuxer == "avi" and (packet := self.read()):
                start = self.presentation_time(packet)
                self.reopen()
            return start, start + length
        # The header of a live recording has no duration: read the file to its end once, without decoding.
        first = last = None
        while packet := self.read():
            at = self.presentation_time(packet)
            end = at + (packet.duration or 0)
            first = at if first is None else min(first, at)
            last = end if last is None else max(last, end)
        if first is None or last is None:
            raise BrokenMedia("the clip has no frames")
        return first, last

    def _find_index(self) -> None:
        """Have libav read Matroska's index, which is at the end, or build one while it looks for it."""
        try:
            self.seek(self.end)
            self.seek(self.start)
        except FFmpegError:
            self.reopen()

    def _demux(self) -> "Iterator[Packet[VideoStream]]":
        # The last packet is empty, and so are dropped frames of an AVI. To a decoder both mean the end.
        return (packet for packet in self._av_container.demux(self.stream) if packet.size)

    def read(self) -> "Packet[VideoStream] | None":
        """The next coded frame; None at the end, or where the file cannot be read any further."""
        self.file.allow(MAX_FRAME_BYTES)
        try:
            packet = next(self._packets, None)
        except FFmpegError:
            packet, self.truncated = None, True
        self.file.check()
        self._packets_left -= 1
        if self._packets_left < 0:
            raise ClipTooLarge(f"the clip has more than {MAX_PACKETS} coded frames, the server's limit")
        return packet

    @property
    def lacks_timestamps(self) -> bool:
        """Whether presentation times are unknown.

        AVI stores no times. The times that libav computes are wrong for codecs that reorder frames.
        """
        return self.container.demuxer == "avi" and self.codec in REORDER_FRAMES

    def presentation_time(self, packet: "Packet[VideoStream]") -> int:
        """When a coded frame is shown, in the time base; its decoding time where that is unknown."""
        at = packet.dts if packet.pts is None or self.lacks_timestamps else packet.pts
        if at is None:
            raise BrokenMedia("the clip has no timestamps")
        return at

    def seek(self, at: int) -> None:
        """Go to the last keyframe before a time, or near it. Raises FFmpegError where that fails."""
        self.file.allow(2 * self.file.size)  # without an index, libav reads the file to find it
        self._av_container.seek(at, stream=self.stream)
        self._packets = self._demux()
        self.file.check()

    def keyframe_before(self, at: int) -> int | None:
        """Time of the last keyframe before a time, from the index; None where the index has none."""
        entries = self.stream.index_entries
        number = entries.search_timestamp(at)
        return entries[number].timestamp if number >= 0 else None

    def decode(self, packet: "Packet[VideoStream] | None", skip: bool = False) -> list[VideoFrame]:
        """Decode a packet, and return the frames that are complete; None returns the last frames.

        skip: the packet's own frame is not needed, unless later frames depend on it.
        """
        if packet and skip and self.codec == "mjpeg":
            return []  # no other frame depends on it
        if packet:
            check_bitstream_limits(self.codec, bytes(packet), self._prefix_size)
            if packet.has_sidedata("new_extradata"):
                raise UnsupportedMedia("the clip changes its codec settings midway, which is not supported")
        codec = self.stream.codec_context
        # dav1d reads this option only when it is opened.
        codec.skip_frame = "NONREF" if skip and self.codec != "av1" else "DEFAULT"
        frames = codec.decode(packet)
        self.file.check()
        self.decoded += len(frames)
        if self.decoded > MAX_DECODED:
            raise ClipTooLarge(f"the clip needs over {MAX_DECODED} frames decoded, the server's limit")
        for frame in frames:
            self.check_size(frame.width, frame.height)
        return frames


def _refuse_open(url: str, flags: int, options: dict[str, Any]) -> NoReturn:
    raise PermissionError("a clip may not refer to other files")
