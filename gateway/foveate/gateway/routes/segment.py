"""POST /segment: one picture in, what each of its pixels shows out."""

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
from foveate.gateway.body import data_of, json_fields
from foveate.gateway.caching.features import CachedImage, window_features_of
from foveate.gateway.limits import deadline_timeout
from foveate.gateway.media.image import Size
from foveate.gateway.media.image_tiles import Choice, TiledImage, decode_tiles, decode_whole
from foveate.gateway.media.masks import RenderedMask, areas, assembled, overlay, png
from foveate.gateway.media.tiling import tiles
from foveate.gateway.media.video import upright_frames
from foveate.gateway.routes.base import TaskRoute
from foveate.gateway.routes.classify import read_flag
from foveate.gateway.routes.context import RequestContext
from foveate.gateway.routes.point_prompts import PointPromptHandler, feature_key
from foveate.gateway.routes.points import Click, points_of, read_points
from foveate.gateway.routes.video_input import VideoInput
from foveate.gateway.schemas.image import segmentation
from foveate.gateway.schemas.response import CacheableResponse, ServedRequest
from foveate.gateway.schemas.video import TimedMask, outlined_clip
from foveate.gateway.schemas.video_masks import animated, check_animated, reel, window_boxes
from foveate.gateway.spool import Medium


@dataclass(frozen=True, slots=True)
class SegmentOptions:
    """What a segmentation may ask for."""

    overlay: bool
    picture: bool
    """The mask or the overlay itself, as image/png, and no JSON around it."""
    points: tuple[Click, ...] = ()
    """On one object, which alone is wanted then."""


class SegmentRoute(TaskRoute[SegmentOptions]):
    """The route."""

    task: Task = "segment"

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.clicker, self.watching = PointPromptHandler(self, self._decode), VideoInput(self)

    def options(self, http: HttpRequest, headers: Mapping[str, str], card: ModelCard) -> SegmentOptions:
        wants = [part.partition(";")[0].strip() for part in headers.get("accept", "").lower().split(",")]
        # Whoever names a picture type gets a picture; */* and nothing at all mean JSON.
        picture = any(re.fullmatch(r"image/(png|\*)", kind) for kind in wants)
        points = read_points(http.query_params.get("points"))
        if points:
            self.clicker.check(card)
        return SegmentOptions(read_flag("overlay", http.query_params.get("overlay")), picture, points)

    def reserve_slot(self, call: RequestContext[SegmentOptions]) -> Slot:
        """With points, reserve with the point-prompt model: the image's features are usually cached."""
        if call.options.points and call.card.click_model:
            return self.cluster.reserve(call.card.click_model, self.promised(call), None, 0.0)
        return super().reserve_slot(call)

    def drawing_s(self, card: ModelCard) -> float:
        return self.decoding.drawing_s(card)

    async def work(
        self, call: RequestContext[SegmentOptions], data: Medium, encoded: bool
    ) -> CacheableResponse:
        """Answer in full or for what is clicked, and render."""
        async with deadline_timeout(call.objective.deadline):
            data, points = await self._opened(call, data, encoded)
        call = self.for_medium(call, await self.watching.is_film(data))
        if call.card.frames or isinstance(data, Path):
            self.reserve(call)
            return await self._watched(call, data, points)
        if points:
            self.reserve(call)
            kind = ("PNG" if call.options.picture else "JPEG") if call.options.overlay else None
            served, drawn = await self.clicker.answer(call, data, points, kind)
        else:
            served, drawn = await self._answered(call, data)
        if call.options.picture:
            return served.answered(drawn.overlay or drawn.mask)
        return segmentation(served, drawn)

    async def _opened(
        self, call: RequestContext[SegmentOptions], data: Medium, encoded: bool
    ) -> tuple[Medium, tuple[Click, ...]]:
        """The picture itself, and the points wherever they were given."""
        points = call.options.points
        if not encoded or isinstance(data, Path):
            return data, points
        body: bytes = data
        data, told = await self.decoding.also(lambda: with_points(body))
        if told and points:
            raise BadRequest("points come in the query or in the body, not in both")
        if told:
            self.clicker.check(call.card)
        return data, told or points

    async def _watched(
        self, call: RequestContext[SegmentOptions], data: Medium, points: Sequence[Click]
    ) -> CacheableResponse:
        """As `work`, of a clip."""
        if points:
            raise BadRequest("points are for pictures; cut the frame out and send it")
        clip, decode_s = await self.watching.decode(call, data, window_boxes)
        outcomes = await gather_or_cancel(*(self.submit(call, pixels) for pixels in clip.pixels))
        if call.options.picture:
            check_animated(clip)
        began, asked, limits = monotonic(), call.options, self.watching.limits()
        kind = "PNG" if asked.picture else "JPEG"

        def draw() -> tuple[list[TimedMask], bytes]:
            pictures = upright_frames(data, call.card.frames, limits) if asked.overlay else None
            found = reel(clip, outcomes, pictures, kind)
            return found, animated(found, clip.duration_s) if asked.picture else b""

        found, picture = await self.decoding.draw(call.card.name, draw)
        served = self._served(call, outcomes, decode_s, began)
        if asked.picture:
            return served.answered(picture)
        return outlined_clip(served, clip, found)

    async def _answered(
        self, call: RequestContext[SegmentOptions], data: bytes
    ) -> tuple[ServedRequest, RenderedMask]:
        """What is seen in all windows, put together."""
        size, outcomes, decode_s, cache = await self._seen(call, data)
        began = monotonic()
        drawn = await self.decoding.draw(call.card.name, lambda: self._drawn(call, data, size, outcomes))
        return self._served(call, outcomes, decode_s, began, cache), drawn

    async def _seen(
        self, call: RequestContext[SegmentOptions], data: bytes
    ) -> tuple[Size, list[Outcome], float, str]:
        """The picture's size, what is in each of its windows, the seconds it took to make these, and whether
        it was there already: clicks may have seen to it before, and may come after."""
        looks: list[tuple[Size, list[Outcome], float]] = []

        async def look(features: bool = True) -> CachedImage:
            self.reserve(call)
            async with deadline_timeout(call.objective.deadline):
                cut, decode_s = await self._decode(call, data)
            outcomes = await gather_or_cancel(
                *(self.submit(call, pixels, features=features) for pixels in cut.pixels)
            )
            looks.append((cut.size, outcomes, decode_s))
            keeps = features and all(outcome.result.features is not None for outcome in outcomes)
            seen = [window_features_of(outcome, call.card) for outcome in outcomes] if keeps else []
            return CachedImage(cut.size, dict(enumerate(seen)))

        def whole(kept: CachedImage) -> bool:
            found = [kept.windows.get(number) for number in range(len(tiles(*kept.size)))]
            return all(seen and seen.quality >= call.objective.min_quality for seen in found)

        if self.sights is None or call.anew or not (call.card.click_model and call.card.weights):
            await look(False)
            return *looks[0], ""
        key = await feature_key(self, call.card, call, data)
        kept, _ = await self.sights.of(key, whole, call.objective.deadline, look)
        if looks:
            return *looks[-1], ""
        return kept.size, [kept.windows[number].outcome() for number in sorted(kept.windows)], 0.0, "hit"

    def _served(
        self,
        call: RequestContext[SegmentOptions],
        outcomes: Sequence[Outcome],
        decode_s: float,
        began: float,
        cache: str = "",
    ) -> ServedRequest:
        """The answer is there: it is counted. `began`: when drawing it did."""
        done = monotonic()
        slowest = max(outcomes, key=lambda outcome: outcome.timings.queue_s + outcome.timings.compute_s)
        timings = {
            "decode": decode_s,
            "queue": slowest.timings.queue_s,
            "compute": slowest.timings.compute_s,
            "render": done - began,
            "total": done - call.arrived,
        }
        met = self.met(call, slowest, done - call.arrived)
        return ServedRequest(call.id, call.card, outcomes, call.pinned, met, timings, cache)

    async def _decode(
        self, call: RequestContext[SegmentOptions], data: bytes, choose: Choice | None = None
    ) -> tuple[TiledImage, float]:
        """The picture in windows, and the seconds it took to make them."""
        card, spec = call.card, call.card.input
        if spec is None:
            raise UnsupportedMedia(f"{card.name} takes no pictures")
        side = max(card.full.image_size, call.plan.image_size if call.plan else 0)
        most = self.settings.max_pixels
        cut, seconds = await self.decoding.read(
            card.name, data, lambda: decode_tiles(data, spec, side, most, choose)
        )
        self.meters[card.name].decode.observe(seconds)
        return cut, seconds

    def _drawn(
        self, call: RequestContext[SegmentOptions], data: bytes, size: Size, outcomes: Sequence[Outcome]
    ) -> RenderedMask:
        """On a thread of the pool: whatever looks at every pixel of the picture."""
        maps = [outcome.result.maps for outcome in outcomes]
        mask = assembled(size, tiles(*size), [found for found in maps if found is not None])
        over = None
        if call.options.overlay:
            whole = decode_whole(data, self.settings.max_pixels)
            over = overlay(whole, mask, "PNG" if call.options.picture else "JPEG")
        return RenderedMask(size, png(mask), over, areas(mask))


def with_points(body: bytes) -> tuple[bytes, tuple[Click, ...]]:
    """The picture in a JSON body, and the points beside it."""
    fields = json_fields(body)
    points = points_of(fields["points"]) if "points" in fields else ()
    return data_of(fields), points


async def gather_or_cancel(*work: Coroutine[Any, Any, Outcome]) -> list[Outcome]:
    """All of them, or the first failure, which ends the others."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
