"""POST /classify: an image or a video in, its classes out."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Any

from starlette.requests import Request as HttpRequest

from foveate.core.errors import BadRequest
from foveate.core.model import InputSpec, ModelCard, Task
from foveate.core.outcome import Outcome, Result, Timings
from foveate.gateway.caching.features import feature_key
from foveate.gateway.limits import deadline_timeout
from foveate.gateway.media.image import decode_image
from foveate.gateway.media.tiling import tiles
from foveate.gateway.routes.base import TaskRoute
from foveate.gateway.routes.context import RequestContext
from foveate.gateway.routes.query import read_flag, read_top_k
from foveate.gateway.routes.services import RouteServices
from foveate.gateway.routes.video_input import VideoInput, center_crop
from foveate.gateway.schemas.image import classification
from foveate.gateway.schemas.response import CacheableResponse, ServedRequest
from foveate.gateway.schemas.video import clip_classification
from foveate.gateway.spool import Medium


@dataclass(frozen=True, slots=True)
class ClassifyOptions:
    """Options of a classification."""

    top_k: int
    """The largest number of classes in the answer."""
    explain: bool
    """The answer says which patches each stage kept."""


class ClassifyRoute(TaskRoute[ClassifyOptions]):
    """The route of task `classify`."""

    task: Task = "classify"

    def __init__(self, services: RouteServices) -> None:
        super().__init__(services)
        self.video_input = VideoInput(self.decoding, self.settings, self.meters)
        cards = services.cluster.cards().values()
        segmenters = [card for card in cards if card.task == "segment" and card.click_model]
        self.shared_trunk = {
            card.name: next(other for other in segmenters if shares_view(card, other))
            for card in self.cards.values()
            if any(shares_view(card, other) for other in segmenters)
        }
        """By model name, a segmentation model with the same trunk, whose cached features hold the classes of
        square images."""

    def options(self, http: HttpRequest, headers: Mapping[str, str], card: ModelCard) -> ClassifyOptions:
        """Read `top_k` and `explain`. Raises BadRequest."""
        if not card.labels:
            raise BadRequest(f"{card.name} has no classifier; it only computes features")
        top_k = read_top_k(http.query_params.get("top_k"))
        return ClassifyOptions(top_k, read_flag("explain", http.query_params.get("explain")))

    async def work(
        self, context: RequestContext[ClassifyOptions], data: Medium, encoded: bool
    ) -> CacheableResponse:
        """Decode, run, respond."""
        media: Any = data
        decode_s = 0.0
        if context.card.input is not None or encoded:
            async with deadline_timeout(context.objective.deadline):
                data = await self.media_bytes(data, encoded)
            context = self.for_medium(context, await self.video_input.is_video(data))
            if context.card.frames or isinstance(data, Path):
                self.admission.reserve(context)
                return await self._classify_video(context, data)
            if (cached := await self._from_features(context, data)) is not None:
                served = self._served(context, cached, 0.0, "hit")
                return classification(served, context.options.top_k, False)
            self.admission.reserve(context)
            async with deadline_timeout(context.objective.deadline):
                media, decode_s = await self._decode(context, data)
        outcome = await self.admission.submit(context, media, explain=context.options.explain)
        served = self._served(context, outcome, decode_s)
        return classification(served, context.options.top_k, context.options.explain)

    async def _from_features(self, context: RequestContext[ClassifyOptions], data: bytes) -> Outcome | None:
        """The classes of a square image from the features that `/segment` cached, or None.

        Only under a plan whose quality was measured for classification and is high enough.
        """
        feature_cache, segmenter = self.services.feature_cache, self.shared_trunk.get(context.card.name)
        if feature_cache is None or segmenter is None or context.bypass_cache:
            return None
        if context.plan or context.options.explain:
            return None
        key = await feature_key(self.decoding, segmenter, None, context.objective.tenant, data)
        image = await feature_cache.find(key)
        if image is None or image.size[0] != image.size[1] or len(tiles(*image.size)) > 1:
            return None
        window = image.windows.get(0)
        if window is None or not window.class_scores.size:
            return None
        plan = replace(context.card.full, image_size=window.plan.image_size, reducer=window.plan.reducer)
        rung = context.card.rung(plan) if plan.parts == window.plan.parts else None
        if rung is None or (rung.quality or 0.0) < context.objective.min_quality:
            return None
        feature_cache.count_hit()
        result = Result(window.class_scores, window.tokens, window.exit_layer, 0.0)
        return Outcome(result, rung.plan, Timings(0.0, 0.0), 1, window.reason)

    async def _classify_video(
        self, context: RequestContext[ClassifyOptions], data: Medium
    ) -> CacheableResponse:
        spec = context.card.input or InputSpec()
        boxes = center_crop(spec, context.card.full.image_size)
        clip, decode_s = await self.video_input.decode(context, data, boxes)
        outcome = await self.admission.submit(context, clip.pixels[0])
        served = self._served(context, outcome, decode_s)
        return clip_classification(served, clip, context.options.top_k, context.options.explain)

    def _served(
        self, context: RequestContext[ClassifyOptions], outcome: Outcome, decode_s: float, cache: str = ""
    ) -> ServedRequest:
        """Count the answer and collect what its response says besides the classes."""
        total_s = monotonic() - context.arrived
        met = self.count_answer(context, outcome, total_s)
        timings_s = {
            "decode": decode_s,
            "queue": outcome.timings.queue_s,
            "compute": outcome.timings.compute_s,
            "total": total_s,
        }
        return ServedRequest(context.id, context.card, [outcome], context.pinned, met, timings_s, cache)

    async def _decode(self, context: RequestContext[ClassifyOptions], data: bytes) -> tuple[Any, float]:
        """Pixels for the model, and the seconds that decoding took."""
        card, spec = context.card, context.card.input
        if spec is None:
            return data, 0.0  # the model takes undecoded bytes
        # All requests of a batch have one size; the model scales the batch down to the plan's size.
        side = max(card.full.image_size, context.plan.image_size if context.plan else 0)
        max_pixels = self.settings.max_pixels
        pixels, seconds = await self.decoding.decode_image(
            card.name, data, lambda: decode_image(data, spec, side, max_pixels)
        )
        self.meters[card.name].decode.observe(seconds)
        return pixels, seconds


def shares_view(card: ModelCard, other: ModelCard) -> bool:
    """Whether two models compute the same features of a square image."""
    spec, other_spec = card.input, other.input
    return (
        bool(card.trunk)
        and card.trunk == other.trunk
        and card.labels == other.labels
        and card.full.image_size == other.full.image_size
        and spec is not None
        and other_spec is not None
        and (spec.crop_pct, spec.interpolation) == (1.0, other_spec.interpolation)
    )
