"""Videos on the task routes: recognised by their bytes, decoded on a thread pool of their own."""

from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

from foveate.core.errors import DeadlineExceeded, UnsupportedMedia
from foveate.core.model import InputSpec, ModelCard
from foveate.core.plan import sampled_frames
from foveate.core.settings import Settings
from foveate.gateway.decoding import Decoding
from foveate.gateway.limits import deadline_timeout
from foveate.gateway.media.frame_transform import FrameBox
from foveate.gateway.media.image import crop_box
from foveate.gateway.media.image_format import Size, image_type, sniff, unsupported
from foveate.gateway.media.video import Clip, decode_clip
from foveate.gateway.media.video_container import is_clip
from foveate.gateway.media.video_demuxer import ClipLimits
from foveate.gateway.routes.context import RequestContext
from foveate.gateway.routes.services import Meters
from foveate.gateway.spool import Medium, head_of

Boxes = Callable[[Size], Sequence[FrameBox]]
"""The parts of a frame of this size that the model gets."""


class VideoInput:
    """Decodes the frames of a video that a model needs."""

    def __init__(self, decoding: Decoding, settings: Settings, meters: Meters) -> None:
        self.decoding, self.settings, self.meters = decoding, settings, meters

    async def is_video(self, data: Medium) -> bool:
        """Whether the bytes are a video of a supported container.

        Raises UnsupportedMedia for a video in another container, of any size, and the errors of `image_type`
        for any other file: a supported image is never one.
        """
        head = data if isinstance(data, bytes) else await self.decoding.run(lambda: head_of(data))
        if is_clip(head):
            return True
        kind = sniff(head[:4096]) or ""
        if kind.startswith("video/"):
            raise unsupported(kind)
        if not isinstance(data, bytes):
            image_type(head)
        return False

    async def check_image(self, card: ModelCard, data: Medium) -> bytes:
        """The bytes, if they are no clip. card: the model, which takes images. Raises UnsupportedMedia."""
        if isinstance(data, bytes) and (card.input is None or not await self.is_video(data)):
            return data
        raise image_expected(card)

    async def decode(self, context: RequestContext[Any], data: Medium, boxes: Boxes) -> tuple[Clip, float]:
        """The frames that the request's plan may use, and the seconds that decoding took.

        Raises FoveateError.
        """
        card, spec = context.card, context.card.input
        if spec is None:
            raise UnsupportedMedia(f"{card.name} takes no clips")
        side, plan = card.full.image_size, context.plan
        frames = sampled_frames(card.frames, plan.frames) if plan is not None and plan.frames else None

        def work() -> Clip:
            limits = self.limits(context.objective.deadline)
            return decode_clip(data, card.frames, side, boxes, spec.interpolation, limits, frames)

        async with deadline_timeout(context.objective.deadline):
            clip, seconds = await self.decoding.decode_video(card.name, work)
        self.meters[card.name].decode.observe(seconds)
        return clip, seconds

    def limits(self, deadline: float | None = None) -> ClipLimits:
        """The limits of one decode. Raises DeadlineExceeded.

        Called on the decode thread, which cannot be stopped from outside: it stops itself at the deadline.
        """
        settings = self.settings
        left_s = settings.clip_decode_s if deadline is None else deadline - monotonic()
        if left_s <= 0:
            raise DeadlineExceeded("the deadline passed before the clip was decoded")
        return ClipLimits(settings.max_clip_s, settings.max_video_pixels, min(settings.clip_decode_s, left_s))


def image_expected(card: ModelCard) -> UnsupportedMedia:
    """The refusal of a clip by a model that takes images."""
    return UnsupportedMedia(f"{card.name} takes images; send one frame of the clip as an image")


def center_crop(spec: InputSpec, side: int) -> Boxes:
    """The crop of a frame that the model gets, the same as of an image."""
    return lambda size: [crop_box(size, spec, side)]
