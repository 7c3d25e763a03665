"""POST /classify: one picture in, its classes and what they cost out."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Any

from starlette.requests import Request as HttpRequest

from foveate.core.errors import BadRequest
from foveate.core.model import InputSpec, ModelCard, Task
from foveate.core.outcome import Outcome, Result, Timings
from foveate.gateway.limits import deadline_timeout
from foveate.gateway.media.image import decode_image
from foveate.gateway.media.tiling import tiles
from foveate.gateway.routes.base import TaskRoute
from foveate.gateway.routes.context import RequestContext
from foveate.gateway.routes.point_prompts import feature_key
from foveate.gateway.routes.video_input import VideoInput, middle
from foveate.gateway.schemas.image import classification
from foveate.gateway.schemas.response import CacheableResponse, ServedRequest
from foveate.gateway.schemas.video import named_clip
from foveate.gateway.spool import Medium


@dataclass(frozen=True, slots=True)
class ClassifyOptions:
    """What a classification may ask for."""

    top_k: int
    explain: bool


class ClassifyRoute(TaskRoute[ClassifyOptions]):
    """The route."""

    task: Task = "classify"

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.watching = VideoInput(self)
        others = [
            card for card in self.cluster.cards().values() if card.task == "segment" and card.click_model
        ]
        self.shared_trunk = {
            card.name: next(one for one in others if same_view(card, one))
            for card in self.cards.values()
            if any(same_view(card, one) for one in others)
        }
        """By model, another one on the same trunk, whose look at a square picture shows it the same."""

    def options(self, http: HttpRequest, headers: Mapping[str, str], card: ModelCard) -> ClassifyOptions:
        if not card.labels:
            raise BadRequest(f"{card.name} has no classifier; it only makes features")
        top_k = read_top_k(http.query_params.get("top_k"))
        return ClassifyOptions(top_k, read_flag("explain", http.query_params.get("explain")))

    async def work(
        self, call: RequestContext[ClassifyOptions], data: Medium, encoded: bool
    ) -> CacheableResponse:
        """Decode, run, render."""
        media: Any = data
        decode_s = 0.0
        if call.card.input is not None or encoded:
            async with deadline_timeout(call.objective.deadline):
                data = await self.plain(data, encoded)
            call = self.for_medium(call, await self.watching.is_film(data))
            if call.card.frames or isinstance(data, Path):
                self.reserve(call)
                return await self._watched(call, data)
            if (known := await self._known(call, data)) is not None:
                return classification(self._served(call, known, 0.0, "hit"), call.options.top_k, False)
            self.reserve(call)
            async with deadline_timeout(call.objective.deadline):
                media, decode_s = await self._decode(call, data)
        self.reserve(call)
        outcome = await self.submit(call, media, explain=call.options.explain)
        served = self._served(call, outcome, decode_s)
        return classification(served, call.options.top_k, call.options.explain)

    async def _known(self, call: RequestContext[ClassifyOptions], data: bytes) -> Outcome | None:
        """What the same trunk said of the picture when it was seen for its pixels, where that is the same
        view, under a plan that is measured for this task and good enough."""
        shared_trunk = self.shared_trunk.get(call.card.name)
        if self.sights is None or shared_trunk is None or call.anew or call.plan or call.options.explain:
            return None
        kept = await self.sights.find(await feature_key(self, shared_trunk, call, data))
        if kept is None or kept.size[0] != kept.size[1] or len(tiles(*kept.size)) > 1:
            return None
        seen = kept.windows.get(0)
        if seen is None or not seen.named.size:
            return None
        plan = replace(call.card.full, image_size=seen.plan.image_size, reducer=seen.plan.reducer)
        rung = call.card.rung(plan) if plan.steps == seen.plan.steps else None
        if rung is None or (rung.quality or 0.0) < call.objective.min_quality:
            return None
        self.sights.used()
        result = Result(seen.named, seen.tokens, seen.exit_layer, 0.0)
        return Outcome(result, rung.plan, Timings(0.0, 0.0), 1, seen.reason)

    async def _watched(self, call: RequestContext[ClassifyOptions], data: Medium) -> CacheableResponse:
        """As `work`, of a clip."""
        spec = call.card.input or InputSpec()
        clip, decode_s = await self.watching.decode(call, data, middle(spec, call.card.full.image_size))
        outcome = await self.submit(call, clip.pixels[0])
        served = self._served(call, outcome, decode_s)
        return named_clip(served, clip, call.options.top_k, call.options.explain)

    def _served(
        self, call: RequestContext[ClassifyOptions], outcome: Outcome, decode_s: float, cache: str = ""
    ) -> ServedRequest:
        """The answer is there: it is counted."""
        total_s = monotonic() - call.arrived
        met = self.met(call, outcome, total_s)
        timings = {
            "decode": decode_s,
            "queue": outcome.timings.queue_s,
            "compute": outcome.timings.compute_s,
            "total": total_s,
        }
        return ServedRequest(call.id, call.card, [outcome], call.pinned, met, timings, cache)

    async def _decode(self, call: RequestContext[ClassifyOptions], data: bytes) -> tuple[Any, float]:
        """Pixels for the model, and the seconds it took to make them."""
        card, spec = call.card, call.card.input
        if spec is None:
            return data, 0.0  # it wants the bytes as they are
        # One size for all who may share a batch; the model scales down to what a plan wants.
        side = max(card.full.image_size, call.plan.image_size if call.plan else 0)
        most = self.settings.max_pixels
        pixels, seconds = await self.decoding.read(
            card.name, data, lambda: decode_image(data, spec, side, most)
        )
        self.meters[card.name].decode.observe(seconds)
        return pixels, seconds


def same_view(card: ModelCard, other: ModelCard) -> bool:
    """Whether two models see the same in a square picture."""
    spec, whole = card.input, other.input
    return (
        bool(card.trunk)
        and card.trunk == other.trunk
        and card.labels == other.labels
        and card.full.image_size == other.full.image_size
        and spec is not None
        and whole is not None
        and (spec.crop_pct, spec.interpolation) == (1.0, whole.interpolation)
    )


def read_flag(name: str, text: str | None) -> bool:
    """A query parameter that is true or false, and false where it is absent."""
    if text not in (None, "true", "false"):
        raise BadRequest(f"{name} must be true or false")
    return text == "true"


def read_top_k(text: str | None) -> int:
    """How many classes to name at most, 5 unless told."""
    if text is None:
        return 5
    if not (text.isascii() and text.isdecimal() and len(text) <= 6 and int(text) >= 1):
        raise BadRequest("top_k must be a whole number from 1")
    return int(text)
