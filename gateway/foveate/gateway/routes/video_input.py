"""Clips on the tasks' routes: decoded like pictures off the event loop, in a pool of their own."""

from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

from foveate.core.errors import BrokenMedia, DeadlineExceeded, UnsupportedMedia
from foveate.core.model import InputSpec
from foveate.core.plan import sampled_frames
from foveate.gateway.limits import deadline_timeout
from foveate.gateway.media.frame_transform import FrameBox
from foveate.gateway.media.image import crop_box
from foveate.gateway.media.image_format import Size
from foveate.gateway.media.video import Clip, decode_clip
from foveate.gateway.media.video_container import is_clip
from foveate.gateway.media.video_demuxer import ClipLimits
from foveate.gateway.routes.base import TaskRoute
from foveate.gateway.routes.context import RequestContext
from foveate.gateway.spool import Medium

Boxes = Callable[[Size], Sequence[FrameBox]]


class VideoInput:
    """What a route does with clips."""

    def __init__(self, route: TaskRoute[Any]) -> None:
        self.route = route

    async def is_film(self, data: Medium) -> bool:
        """Whether it is a clip of any kind, read here or not. Raises BrokenMedia for a file that is none:
        only what is sent as a clip lies in a file."""
        if isinstance(data, bytes):
            return is_clip(data)
        if not is_clip(await self.route.decoding.run(lambda: head_of(data))):
            raise BrokenMedia("the bytes are not a clip in a known format")
        return True

    async def decode(self, call: RequestContext[Any], data: Medium, boxes: Boxes) -> tuple[Clip, float]:
        """The frames that the model of the call may look at, and the seconds it took to read them."""
        card, spec = call.card, call.card.input
        if spec is None:
            raise UnsupportedMedia(f"{card.name} takes no clips")
        side, plan = card.full.image_size, call.plan
        only = sampled_frames(card.frames, plan.frames) if plan is not None and plan.frames else None

        def work() -> Clip:
            limits = self.limits(call.objective.deadline)
            return decode_clip(data, card.frames, side, boxes, spec.interpolation, limits, only)

        async with deadline_timeout(call.objective.deadline):
            clip, seconds = await self.route.decoding.decode_video(card.name, work)
        self.route.meters[card.name].decode.observe(seconds)
        return clip, seconds

    def limits(self, deadline: float | None = None) -> ClipLimits:
        """What is refused. Called where decoding begins: a thread cannot be stopped, but gives up by itself
        when the deadline passes. Raises DeadlineExceeded."""
        settings = self.route.settings
        left = settings.clip_decode_s if deadline is None else deadline - monotonic()
        if left <= 0:
            raise DeadlineExceeded("the deadline passed before the clip was read")
        return ClipLimits(settings.max_clip_s, settings.max_video_pixels, min(settings.clip_decode_s, left))


def middle(spec: InputSpec, side: int) -> Boxes:
    """The part of a frame that a model sees of pictures too."""
    return lambda size: [crop_box(size, spec, side)]


def head_of(path: Path) -> bytes:
    """How a file begins."""
    with path.open("rb") as file:
        return file.read(4096)
