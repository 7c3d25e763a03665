"""The frames of a clip that are shown at given times, and hardly any others decoded."""

from collections import deque

from av.error import FFmpegError
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from foveate.core.errors import BrokenMedia
from foveate.core.settings import MIB
from foveate.gateway.media.video_demuxer import REORDER, VideoDemuxer

AHEAD, AHEAD_BYTES = 32, 8 * MIB
"""Coded frames read before the first of them is decoded, at most."""

Timed = tuple[int, VideoFrame]
"""A frame and when it is shown, in the reel's units."""


class FrameSeeker:
    """A reel that is wound forward, from one wanted time to the next."""

    def __init__(self, reel: VideoDemuxer) -> None:
        self._reel, self._reorder = reel, REORDER.get(reel.codec, 0)
        self._forward_only = False
        self._lead = 0
        """How long before it is shown a frame is stored that is stored whole."""
        self._delay: int | None = None
        self._wind()
        while reel.timeless and self._delay is None and not self._drained:
            self._fill(reel.start)
            self._step(None)
        self._forward_only = reel.timeless and self._delay is None

    def shown(self, time: int) -> Timed:
        """The frame shown at a time, no earlier than the one before; the first frame where none is yet.

        Raises BrokenMedia where it cannot be had, ClipTooLarge.
        """
        stored = self._shortcut(time)
        if stored is not None:
            self._seek(stored, time)
        found = self._advance(time)
        if found is None and not self._forward_only:  # the seek led past it, or to nothing that decodes
            self._from_the_start()
            found = self._advance(time)
        if found is None and not self._out:
            raise BrokenMedia("the clip's frames are truncated or damaged")
        found = found or self._out[0]
        self._vouch(found, time)
        return found

    def _shortcut(self, time: int) -> int | None:
        """When the frame is stored that decoding may as well begin at; None: it has come further already."""
        if self._forward_only:
            return None
        whole = self._reel.whole_before(time - self._lead)
        if whole is None or (self._wound_to is not None and self._wound_to >= whole):
            return None
        return whole

    def _seek(self, stored: int, time: int) -> None:
        try:
            for at in (time, stored - 1):
                self._reel.seek(at)
                self._wind()
                self._fill(time)
                if not self._times or self._times[0] <= time:
                    return
                # Stored before that time, but shown after it: what is wanted hangs on the one before.
        except FFmpegError:
            self._from_the_start()

    def _from_the_start(self) -> None:
        """One pass, whatever the index says."""
        self._reel.reopen()
        self._forward_only = True
        self._wind()

    def _wind(self) -> None:
        """Forget what was read."""
        self._ahead: deque[Packet[VideoStream]] = deque()
        self._times: list[int] = []
        """Of the frames read, from the one shown now."""
        self._out: deque[Timed] = deque()
        self._last: Timed | None = None
        self._bad: list[int] = []
        """When frames are shown that do not decode."""
        self._spoiled: int | None = None
        """From here on frames build on one that does not."""
        self._counted: int | None = None
        """When the last frame was shown that came out of a timeless reel."""
        self._wound_to: int | None = None
        """How far it has been decoded, in the order of storage or in that of showing."""
        self._ended = self._drained = False

    def _advance(self, time: int) -> Timed | None:
        """Decode until it is certain what is shown at a time; None: nothing is yet."""
        while True:
            while self._out and self._out[0][0] <= time:
                self._last = self._out.popleft()
            if self._out or self._drained:
                return self._last
            self._fill(time)
            target = max((at for at in self._times if at <= time), default=None)
            if self._last and self._last[0] == target and self._settled(time):
                return self._last
            self._step(target)

    def _fill(self, time: int) -> None:
        """Read ahead until it is known which frame is shown at a time, or as far as is allowed."""
        size = sum(packet.size for packet in self._ahead)
        while not self._ended and not (self._ahead and self._settled(time)):
            if len(self._ahead) >= AHEAD or size >= AHEAD_BYTES:
                break
            packet = self._reel.read()
            if packet is None:
                self._ended = True
                break
            size += packet.size
            self._ahead.append(packet)
            self._note(packet, time)

    def _note(self, packet: "Packet[VideoStream]", time: int) -> None:
        at = self._reel.when(packet)
        self._counted = at - 1 if self._counted is None else self._counted
        if packet.is_keyframe and packet.dts is not None:
            self._lead = max(self._lead, at - packet.dts)
        shown = max((t for t in self._times if t <= time), default=at)
        self._times = [t for t in self._times if t >= shown] + [at]

    def _settled(self, time: int) -> bool:
        """Whatever is not yet read is shown after this time."""
        return self._ended or (
            not self._reel.timeless and sum(at > time for at in self._times) > self._reorder
        )

    def _step(self, target: int | None) -> None:
        """Decode one more, if only as far as later ones need it when it is not shown at the wanted time."""
        packet = self._ahead.popleft() if self._ahead else None
        self._drained = packet is None
        at = self._reel.when(packet) if packet else 0
        if packet:
            self._wound_to = max(at, packet.dts or at, self._wound_to or at)
        try:
            if packet and packet.is_corrupt:
                raise FFmpegError(0, "cut off")
            skip = bool(packet) and not self._reel.timeless and target is not None and at < target
            frames = self._reel.decode(packet, skip)
        except FFmpegError:
            self._bad.append(at)
            self._spoiled = at if self._spoiled is None else min(at, self._spoiled)
            return
        for frame in frames:
            self._take(frame, at)

    def _take(self, frame: VideoFrame, read: int) -> None:
        at = self._clock(frame, read)
        if frame.is_corrupt:
            self._spoiled = at if self._spoiled is None else min(at, self._spoiled)
        elif frame.key_frame and self._spoiled is not None and at > self._spoiled:
            self._spoiled = None
        if self._spoiled is None or at < self._spoiled:
            self._out.append((at, frame))
        else:
            self._bad.append(at)

    def _clock(self, frame: VideoFrame, read: int) -> int:
        """When a frame is shown that came out as one stored for the time `read` went in."""
        if not self._reel.timeless:
            return read if frame.pts is None else frame.pts
        # It comes out when all are in that are stored before it: each time later by the same delay.
        if frame.dts is not None:
            self._delay = frame.dts - self._reel.start if self._delay is None else self._delay
            self._counted = frame.dts - self._delay
        else:
            self._counted = (self._counted or 0) + 1
        return self._counted

    def _vouch(self, found: Timed, time: int) -> None:
        """Raises BrokenMedia where another frame would be shown at that time, had it decoded."""
        at, frame = found
        if any(at < bad <= time or time < bad < at for bad in self._bad):
            raise BrokenMedia("some of the clip's frames are damaged")
        if self._ended and self._reel.cut and time >= at + max(frame.duration, 1):
            raise BrokenMedia("the clip ends before the time that its header tells")
