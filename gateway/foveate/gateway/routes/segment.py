"""POST /segment: an image or a video in, the class of each pixel out; with points, one object's mask."""

import asyncio
import re
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from starlette.requests import Request as HttpRequest

from foveate.cluster import Slot
from foveate.core.errors import BadRequest, UnsupportedMedia
from foveate.core.model import ModelCard, Task
from foveate.core.outcome import Outcome
from foveate.gateway.body import decode_data, json_fields
from foveate.gateway.caching.features import CachedImage, feature_key, window_features_of
from foveate.gateway.limits import deadline_timeout
from foveate.gateway.media.image_format import Size
from foveate.gateway.media.image_tiles import TiledImage, TileSelector, decode_tiles, decode_whole
from foveate.gateway.media.masks import RenderedMask, areas, assemble_mask, encode_mask, overlay
from foveate.gateway.media.tiling import tiles
from foveate.gateway.media.video import upright_frames
from foveate.gateway.routes.admission import Admission
from foveate.gateway.routes.base import TaskRoute
from foveate.gateway.routes.context import RequestContext
from foveate.gateway.routes.point_prompts import PointPromptHandler
from foveate.gateway.routes.points import Click, points_of, read_points
from foveate.gateway.routes.query import read_flag
from foveate.gateway.routes.services import RouteServices
from foveate.gateway.routes.video_input import VideoInput
from foveate.gateway.schemas.image import segmentation
from foveate.gateway.schemas.response import CacheableResponse, ServedRequest
from foveate.gateway.schemas.video import TimedMask, clip_segmentation
from foveate.gateway.schemas.video_masks import animated_png, check_animation_size, frame_masks, window_boxes
from foveate.gateway.spool import Medium


@dataclass(frozen=True, slots=True)
class SegmentOptions:
    """Options of a segmentation."""

    overlay: bool
    """The answer has the image with the mask blended over it."""
    picture: bool
    """The response is the mask, or the overlay, as image/png instead of JSON."""
    points: tuple[Click, ...] = ()
    """Clicks of the query: the answer is the mask of one object."""


@dataclass(frozen=True, slots=True)
class SegmentedImage:
    """The model's answer for every window of an image."""

    size: Size
    """Of the upright image."""
    outcomes: Sequence[Outcome]
    """One for each window."""
    decode_s: float
    cache: str
    """`hit` if all windows came from the feature cache, else empty."""


class SegmentAdmission(Admission):
    """Reserves with the point-prompt model for requests with points, and leaves time to render masks."""

    def render_s(self, card: ModelCard) -> float:
        """Predicted seconds from the model's answer to the rendered mask."""
        return self.decoding.render_wait_s(card)

    def _reserve(self, context: RequestContext[SegmentOptions]) -> Slot:
        if context.options.points and context.card.click_model:
            # The features of the image are usually cached, so that only the point-prompt model runs.
            return self.cluster.reserve(context.card.click_model, self.engine_objective(context), None, 0.0)
        return super()._reserve(context)


class SegmentRoute(TaskRoute[SegmentOptions]):
    """The route of task `segment`."""

    task: Task = "segment"

    def __init__(self, services: RouteServices) -> None:
        super().__init__(services, SegmentAdmission(services.cluster, services.decoding, self.task))
        self.video_input = VideoInput(self.decoding, self.settings, self.meters)
        self.point_prompts = PointPromptHandler(services, self.admission, self.meters, self._decode)

    def options(self, http: HttpRequest, headers: Mapping[str, str], card: ModelCard) -> SegmentOptions:
        """Read `overlay`, `points` and the Accept header. Raises BadRequest."""
        accept = [part.partition(";")[0].strip() for part in headers.get("accept", "").lower().split(",")]
        # Only an image type asks for an image: */* and no header at all mean JSON.
        picture = any(re.fullmatch(r"image/(png|\*)", kind) for kind in accept)
        points = read_points(http.query_params.get("points"))
        if points:
            self.point_prompts.check(card)
        return SegmentOptions(read_flag("overlay", http.query_params.get("overlay")), picture, points)

    async def work(
        self, context: RequestContext[SegmentOptions], data: Medium, encoded: bool
    ) -> CacheableResponse:
        """Segment the whole image, or the clicked object, and render the mask."""
        async with deadline_timeout(context.objective.deadline):
            data, points = await self._media_and_points(context, data, encoded)
        context = self.for_medium(context, await self.video_input.is_video(data))
        if context.card.frames or isinstance(data, Path):
            self.admission.reserve(context)
            return await self._segment_video(context, data, points)
        if points:
            self.admission.reserve(context)
            overlay_format = None
            if context.options.overlay:
                overlay_format = "PNG" if context.options.picture else "JPEG"
            served, rendered = await self.point_prompts.answer(context, data, points, overlay_format)
        else:
            served, rendered = await self._segment_image(context, data)
        if context.options.picture:
            return served.to_response(rendered.overlay or rendered.mask)
        return segmentation(served, rendered)

    async def _media_and_points(
        self, context: RequestContext[SegmentOptions], data: Medium, encoded: bool
    ) -> tuple[Medium, tuple[Click, ...]]:
        """The media, and the points of the query or of the JSON body. Raises BadRequest."""
        points = context.options.points
        if not encoded or isinstance(data, Path):
            return data, points
        body: bytes = data
        data, body_points = await self.decoding.run(lambda: media_and_points(body))
        if body_points and points:
            raise BadRequest("send points in the query or in the body, not in both")
        if body_points:
            self.point_prompts.check(context.card)
        return data, body_points or points

    async def _segment_video(
        self, context: RequestContext[SegmentOptions], data: Medium, points: Sequence[Click]
    ) -> CacheableResponse:
        if points:
            raise BadRequest("points are for pictures; cut the frame out and send it")
        clip, decode_s = await self.video_input.decode(context, data, window_boxes)
        outcomes = await gather_or_cancel(*(self.admission.submit(context, pixels) for pixels in clip.pixels))
        options = context.options
        if options.picture:
            check_animation_size(clip)
        render_started, limits = monotonic(), self.video_input.limits()
        overlay_format = "PNG" if options.picture else "JPEG"

        def render() -> tuple[list[TimedMask], bytes]:
            frames = upright_frames(data, context.card.frames, limits) if options.overlay else None
            masks = frame_masks(clip, outcomes, frames, overlay_format)
            return masks, animated_png(masks, clip.duration_s) if options.picture else b""

        masks, picture = await self.decoding.render(context.card.name, render)
        served = self._served(context, outcomes, decode_s, render_started)
        if options.picture:
            return served.to_response(picture)
        return clip_segmentation(served, clip, masks)

    async def _segment_image(
        self, context: RequestContext[SegmentOptions], data: bytes
    ) -> tuple[ServedRequest, RenderedMask]:
        image = await self._outcomes(context, data)
        render_started = monotonic()
        rendered = await self.decoding.render(
            context.card.name, lambda: self._render(context, data, image.size, image.outcomes)
        )
        served = self._served(context, image.outcomes, image.decode_s, render_started, image.cache)
        return served, rendered

    async def _outcomes(self, context: RequestContext[SegmentOptions], data: bytes) -> SegmentedImage:
        """The outcome of every window: from the feature cache, or computed.

        Requests for the same image share one computation, point prompts included.
        """
        computed: list[SegmentedImage] = []

        async def compute(features: bool = True) -> CachedImage:
            self.admission.reserve(context)
            async with deadline_timeout(context.objective.deadline):
                image, decode_s = await self._decode(context, data)
            outcomes = await gather_or_cancel(
                *(self.admission.submit(context, pixels, features=features) for pixels in image.pixels)
            )
            computed.append(SegmentedImage(image.size, outcomes, decode_s, ""))
            complete = features and all(outcome.result.features is not None for outcome in outcomes)
            windows = [window_features_of(outcome, context.card) for outcome in outcomes] if complete else []
            return CachedImage(image.size, dict(enumerate(windows)))

        def good(image: CachedImage) -> bool:
            windows = [image.windows.get(number) for number in range(len(tiles(*image.size)))]
            return all(window and window.quality >= context.objective.min_quality for window in windows)

        feature_cache, card = self.services.feature_cache, context.card
        if feature_cache is None or context.bypass_cache or not (card.click_model and card.weights):
            await compute(False)
            return computed[0]
        key = await feature_key(self.decoding, card, context.plan, context.objective.tenant, data)
        cached, _ = await feature_cache.get_or_compute(key, good, context.objective.deadline, compute)
        if computed:
            return computed[-1]
        outcomes = [cached.windows[number].outcome() for number in sorted(cached.windows)]
        return SegmentedImage(cached.size, outcomes, 0.0, "hit")

    def _served(
        self,
        context: RequestContext[SegmentOptions],
        outcomes: Sequence[Outcome],
        decode_s: float,
        render_started: float,
        cache: str = "",
    ) -> ServedRequest:
        """Count the answer and collect what its response says besides the mask."""
        now = monotonic()
        slowest = max(outcomes, key=lambda outcome: outcome.timings.queue_s + outcome.timings.compute_s)
        timings_s = {
            "decode": decode_s,
            "queue": slowest.timings.queue_s,
            "compute": slowest.timings.compute_s,
            "render": now - render_started,
            "total": now - context.arrived,
        }
        met = self.count_answer(context, slowest, now - context.arrived)
        return ServedRequest(context.id, context.card, outcomes, context.pinned, met, timings_s, cache)

    async def _decode(
        self, context: RequestContext[SegmentOptions], data: bytes, choose: TileSelector | None = None
    ) -> tuple[TiledImage, float]:
        """The windows of the image, and the seconds that decoding took. Raises UnsupportedMedia."""
        card, spec = context.card, context.card.input
        if spec is None:
            raise UnsupportedMedia(f"{card.name} takes no pictures")
        side = max(card.full.image_size, context.plan.image_size if context.plan else 0)
        max_pixels = self.settings.max_pixels
        image, seconds = await self.decoding.decode_image(
            card.name, data, lambda: decode_tiles(data, spec, side, max_pixels, choose)
        )
        self.meters[card.name].decode.observe(seconds)
        return image, seconds

    def _render(
        self,
        context: RequestContext[SegmentOptions],
        data: bytes,
        size: Size,
        outcomes: Sequence[Outcome],
    ) -> RenderedMask:
        """The mask at the image's size. Runs on a pool thread: it touches every pixel."""
        maps = [outcome.result.maps for outcome in outcomes]
        mask = assemble_mask(
            size, tiles(*size), [window_maps for window_maps in maps if window_maps is not None]
        )
        blended = None
        if context.options.overlay:
            whole = decode_whole(data, self.settings.max_pixels)
            blended = overlay(whole, mask, "PNG" if context.options.picture else "JPEG")
        return RenderedMask(size, encode_mask(mask), blended, areas(mask))


def media_and_points(body: bytes) -> tuple[bytes, tuple[Click, ...]]:
    """The media in a JSON body, and its `points`. Raises BadRequest."""
    fields = json_fields(body)
    points = points_of(fields["points"]) if "points" in fields else ()
    return decode_data(fields), points


async def gather_or_cancel(*work: Coroutine[Any, Any, Outcome]) -> list[Outcome]:
    """All outcomes; at the first failure, cancel the others and raise it."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
