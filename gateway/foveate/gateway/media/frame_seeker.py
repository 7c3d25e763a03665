"""The frames of a video at given times, with as few other frames decoded as possible."""

from collections import deque

from av.error import FFmpegError
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from foveate.core.errors import BrokenMedia
from foveate.core.settings import MIB
from foveate.gateway.media.video_demuxer import REORDER_FRAMES, VideoDemuxer

MAX_PREFETCHED, MAX_PREFETCHED_BYTES = 32, 8 * MIB
"""Packets (coded frames) that are read ahead of the decoder at most, and their bytes."""

TimedFrame = tuple[int, VideoFrame]
"""A frame and its presentation time, in the demuxer's time base."""


class FrameSeeker:
    """Decodes a video forward, from one requested time to the next. For one thread at a time."""

    def __init__(self, demuxer: VideoDemuxer) -> None:
        self._demuxer, self._reorder = demuxer, REORDER_FRAMES.get(demuxer.codec, 0)
        self._forward_only = False
        self._keyframe_lead = 0
        """Longest time between a keyframe's decoding time and its presentation time."""
        self._delay: int | None = None
        """In a video without timestamps: the decoder's delay."""
        self._reset()
        while demuxer.lacks_timestamps and self._delay is None and not self._drained:
            self._prefetch(demuxer.start)
            self._decode_next(None)
        self._forward_only = demuxer.lacks_timestamps and self._delay is None

    def frame_at(self, time: int) -> TimedFrame:
        """The frame shown at a time, or the first frame before any is shown. Times must not decrease.

        Raises BrokenMedia where the frame does not decode, and ClipTooLarge.
        """
        keyframe = self._useful_keyframe(time)
        if keyframe is not None:
            self._seek(keyframe, time)
        result = self._advance(time)
        if (
            result is None and not self._forward_only
        ):  # the seek went past it, or to data that does not decode
            self._restart()
            result = self._advance(time)
        if result is None and not self._frames:
            raise BrokenMedia("the clip's frames are truncated or damaged")
        result = result or self._frames[0]
        self._check_result(result, time)
        return result

    def _useful_keyframe(self, time: int) -> int | None:
        """The keyframe from which decoding may start; None where the decoder is past it already."""
        if self._forward_only:
            return None
        keyframe = self._demuxer.keyframe_before(time - self._keyframe_lead)
        if keyframe is None or (self._position is not None and self._position >= keyframe):
            return None
        return keyframe

    def _seek(self, keyframe: int, time: int) -> None:
        try:
            for at in (time, keyframe - 1):
                self._demuxer.seek(at)
                self._reset()
                self._prefetch(time)
                if not self._times or self._times[0] <= time:
                    return
                # The keyframe is stored before that time but shown after it: start from the one before.
        except FFmpegError:
            self._restart()

    def _restart(self) -> None:
        """Decode from the beginning, once, without the index."""
        self._demuxer.reopen()
        self._forward_only = True
        self._reset()

    def _reset(self) -> None:
        """Drop all packets and frames, as after a seek."""
        self._packets: deque[Packet[VideoStream]] = deque()
        """Read and not decoded yet."""
        self._times: list[int] = []
        """Presentation times of the packets read, from the frame that is shown now."""
        self._frames: deque[TimedFrame] = deque()
        """Decoded and not shown yet."""
        self._last: TimedFrame | None = None
        """The frame that is shown now."""
        self._damaged: list[int] = []
        """Presentation times of frames that do not decode."""
        self._damaged_from: int | None = None
        """From this time on, frames depend on a frame that does not decode."""
        self._last_time: int | None = None
        """In a video without timestamps: the presentation time of the last decoded frame."""
        self._position: int | None = None
        """The latest decoding or presentation time that has been decoded."""
        self._ended = self._drained = False
        """All packets are read; all frames are decoded."""

    def _advance(self, time: int) -> TimedFrame | None:
        """Decode until the frame shown at a time is certain; None where no frame is shown yet."""
        while True:
            while self._frames and self._frames[0][0] <= time:
                self._last = self._frames.popleft()
            if self._frames or self._drained:
                return self._last
            self._prefetch(time)
            target = max((at for at in self._times if at <= time), default=None)
            if self._last and self._last[0] == target and self._is_settled(time):
                return self._last
            self._decode_next(target)

    def _prefetch(self, time: int) -> None:
        """Read packets until the frame shown at a time is known, or the limits are reached."""
        size = sum(packet.size for packet in self._packets)
        while not self._ended and not (self._packets and self._is_settled(time)):
            if len(self._packets) >= MAX_PREFETCHED or size >= MAX_PREFETCHED_BYTES:
                break
            packet = self._demuxer.read()
            if packet is None:
                self._ended = True
                break
            size += packet.size
            self._packets.append(packet)
            self._record_time(packet, time)

    def _record_time(self, packet: "Packet[VideoStream]", time: int) -> None:
        at = self._demuxer.presentation_time(packet)
        self._last_time = at - 1 if self._last_time is None else self._last_time
        if packet.is_keyframe and packet.dts is not None:
            self._keyframe_lead = max(self._keyframe_lead, at - packet.dts)
        shown = max((t for t in self._times if t <= time), default=at)
        self._times = [t for t in self._times if t >= shown] + [at]

    def _is_settled(self, time: int) -> bool:
        """Whether every packet that is not read yet is shown after this time."""
        return self._ended or (
            not self._demuxer.lacks_timestamps and sum(at > time for at in self._times) > self._reorder
        )

    def _decode_next(self, target: int | None) -> None:
        """Decode one packet. A frame shown before `target` is decoded only as far as later ones need it."""
        packet = self._packets.popleft() if self._packets else None
        self._drained = packet is None
        at = self._demuxer.presentation_time(packet) if packet else 0
        if packet:
            self._position = max(at, packet.dts or at, self._position or at)
        try:
            if packet and packet.is_corrupt:
                raise FFmpegError(0, "cut off")
            skip = bool(packet) and not self._demuxer.lacks_timestamps and target is not None and at < target
            frames = self._demuxer.decode(packet, skip)
        except FFmpegError:
            self._damaged.append(at)
            self._damaged_from = at if self._damaged_from is None else min(at, self._damaged_from)
            return
        for frame in frames:
            self._accept(frame, at)

    def _accept(self, frame: VideoFrame, packet_time: int) -> None:
        """Keep a decoded frame unless it depends on a damaged one."""
        at = self._frame_time(frame, packet_time)
        if frame.is_corrupt:
            self._damaged_from = at if self._damaged_from is None else min(at, self._damaged_from)
        elif frame.key_frame and self._damaged_from is not None and at > self._damaged_from:
            self._damaged_from = None
        if self._damaged_from is None or at < self._damaged_from:
            self._frames.append((at, frame))
        else:
            self._damaged.append(at)

    def _frame_time(self, frame: VideoFrame, packet_time: int) -> int:
        """The presentation time of a decoded frame. `packet_time`: that of the packet decoded last."""
        if not self._demuxer.lacks_timestamps:
            return packet_time if frame.pts is None else frame.pts
        # The decoder returns a frame once it has all frames stored before it: always after the same delay.
        if frame.dts is not None:
            self._delay = frame.dts - self._demuxer.start if self._delay is None else self._delay
            self._last_time = frame.dts - self._delay
        else:
            self._last_time = (self._last_time or 0) + 1
        return self._last_time

    def _check_result(self, result: TimedFrame, time: int) -> None:
        """Raises BrokenMedia where a damaged or missing frame would be shown at that time instead."""
        at, frame = result
        if any(at < damaged <= time or time < damaged < at for damaged in self._damaged):
            raise BrokenMedia("some of the clip's frames are damaged")
        if self._ended and self._demuxer.truncated and time >= at + max(frame.duration, 1):
            raise BrokenMedia("the clip is truncated: it ends before the time in its header")
