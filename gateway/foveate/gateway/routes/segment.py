"""POST /segment: an image or a clip in, the class of each pixel out; with points, one object's mask."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import ClassVar

from foveate.cluster import Slot
from foveate.core.chat import ChatCall
from foveate.core.errors import BadRequest
from foveate.core.model import ModelCard, Task
from foveate.gateway.media.video import upright_frames
from foveate.gateway.routes.admission import Admission
from foveate.gateway.routes.base import TaskRoute
from foveate.gateway.routes.completion import complete
from foveate.gateway.routes.context import RequestContext
from foveate.gateway.routes.image_input import ImageInput
from foveate.gateway.routes.image_segmentation import ImageSegmenter
from foveate.gateway.routes.options import OptionValues, ReadOption, flag_option
from foveate.gateway.routes.point_prompts import PointPromptHandler
from foveate.gateway.routes.points import Click, read_points
from foveate.gateway.routes.services import RouteServices
from foveate.gateway.routes.video_input import VideoInput
from foveate.gateway.schemas.image import segmentation
from foveate.gateway.schemas.response import CacheableResponse
from foveate.gateway.schemas.video import TimedMask, clip_segmentation
from foveate.gateway.schemas.video_masks import animated_png, check_animation_size, frame_masks, tile_boxes
from foveate.gateway.spool import Medium


@dataclass(frozen=True, slots=True)
class SegmentOptions:
    """Options of a segmentation."""

    overlay: bool
    """The answer has the image with the mask blended over it."""
    as_png: bool
    """The response is the mask, or the overlay, as image/png instead of JSON."""
    points: tuple[Click, ...] = ()
    """Points on and off one object: the answer is its mask."""

    @property
    def overlay_format(self) -> str | None:
        """The image format of the overlay; None if the answer has none."""
        if not self.overlay:
            return None
        return "PNG" if self.as_png else "JPEG"


class SegmentAdmission(Admission):
    """Reserves with the point-prompt model for requests with points, and leaves time to render masks."""

    def render_s(self, card: ModelCard) -> float:
        """Predicted seconds from the model's answer to the rendered mask."""
        return self.decoding.render_wait_s(card)

    def _reserve(self, context: RequestContext[SegmentOptions], call: ChatCall | None = None) -> Slot:
        if context.options.points and context.card.click_model:
            # The features of the image are usually cached, so that only the point-prompt model runs.
            return self.cluster.reserve(context.card.click_model, self.engine_objective(context), None, 0.0)
        return super()._reserve(context)


class SegmentRoute(TaskRoute[SegmentOptions]):
    """The route of task `segment`."""

    task: Task = "segment"
    own_options: ClassVar[Mapping[str, ReadOption]] = {
        "overlay": flag_option("overlay"),
        "points": read_points,
    }

    def __init__(self, services: RouteServices) -> None:
        super().__init__(services, SegmentAdmission(services.cluster, services.decoding, self.task))
        self.video_input = VideoInput(self.decoding, self.settings, self.meters)
        image_input = ImageInput(self.decoding, self.settings, self.meters)
        self.image_segmenter = ImageSegmenter(services, self.admission, self.meters, image_input)
        self.point_prompts = PointPromptHandler(services, self.admission, self.meters, image_input)

    def options(self, values: OptionValues, headers: Mapping[str, str], card: ModelCard) -> SegmentOptions:
        """The options of a segmentation, with what the Accept header asks for. Raises BadRequest."""
        accept = [part.partition(";")[0].strip() for part in headers.get("accept", "").lower().split(",")]
        # Only an image type asks for an image: */* and no header at all mean JSON.
        as_png = any(re.fullmatch(r"image/(png|\*)", kind) for kind in accept)
        points = values.get("points", ())
        if points:
            self.point_prompts.check(card)
        return SegmentOptions(values.get("overlay", False), as_png, points)

    async def work(self, context: RequestContext[SegmentOptions], data: Medium) -> CacheableResponse:
        """Segment the whole image, or the clicked object, and render the mask. Raises FoveateError."""
        context = self.for_medium(context, await self.video_input.is_video(data))
        options = context.options
        if context.card.frames or isinstance(data, Path):
            if options.points:
                raise BadRequest("points are for images; send one frame of the clip as an image")
            self.admission.reserve(context)
            return await self._segment_video(context, data)
        if options.points:
            self.admission.reserve(context)
            served, rendered = await self.point_prompts.answer(
                context, data, options.points, options.overlay_format
            )
        else:
            served, rendered = await self.image_segmenter.answer(context, data, options.overlay_format)
        if options.as_png:
            return served.to_response(rendered.overlay or rendered.mask)
        return segmentation(served, rendered)

    async def _segment_video(
        self, context: RequestContext[SegmentOptions], data: Medium
    ) -> CacheableResponse:
        clip, decode_s = await self.video_input.decode(context, data, tile_boxes)
        outcomes = await self.admission.submit_all(context, clip.pixels)
        options = context.options
        if options.as_png:
            check_animation_size(clip)
        render_started, limits = monotonic(), self.video_input.limits()
        overlay_format = "PNG" if options.as_png else "JPEG"

        def render() -> tuple[list[TimedMask], bytes]:
            frames = upright_frames(data, context.card.frames, limits) if options.overlay else None
            masks = frame_masks(clip, outcomes, frames, overlay_format)
            return masks, animated_png(masks, clip.duration_s) if options.as_png else b""

        masks, animation = await self.decoding.render(context.card.name, render)
        served = complete(self.meters, context, outcomes, decode_s, render_started=render_started)
        if options.as_png:
            return served.to_response(animation)
        return clip_segmentation(served, clip, masks)
