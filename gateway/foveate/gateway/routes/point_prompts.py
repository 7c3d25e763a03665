"""Clicks on a picture: what its model saw is kept, so that further clicks run the light decoder alone."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from time import monotonic
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from foveate.core.clicks import Clicked
from foveate.core.errors import BadRequest, FoveateError
from foveate.core.model import ModelCard
from foveate.core.outcome import ClassMaps, Outcome, Result, Timings
from foveate.core.request import Request
from foveate.gateway.caching.features import CachedImage, WindowFeatures, window_features_of
from foveate.gateway.caching.response import FOVEATE
from foveate.gateway.limits import deadline_timeout
from foveate.gateway.media.image_tiles import Choice, TiledImage, decode_whole
from foveate.gateway.media.masks import ClassArea, RenderedMask, above, overlay, png
from foveate.gateway.media.tiling import Tile, tiles
from foveate.gateway.routes.base import TaskRoute
from foveate.gateway.routes.context import RequestContext
from foveate.gateway.routes.points import Click, window_of, within_box
from foveate.gateway.schemas.response import ServedRequest

Decode = Callable[[RequestContext[Any], bytes, Choice], Awaitable[tuple[TiledImage, float]]]
"""The window that is chosen of a picture, and the seconds it took to make it."""


@dataclass(frozen=True, slots=True)
class PromptPass:
    """One run of a model over a window of a picture."""

    kept: CachedImage
    number: int
    """Of the window."""
    decode_s: float
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class PromptView:
    """What a click is answered from."""

    size: tuple[int, int]
    window: Tile
    seen: WindowFeatures
    look: PromptPass | None = None
    """How it was seen, where this request saw to it."""


class PointPromptHandler:
    """Answers clicks for a route whose models keep features."""

    def __init__(self, route: TaskRoute[Any], decode: Decode) -> None:
        self.route, self.decode = route, decode

    def check(self, card: ModelCard) -> None:
        """Raises BadRequest for a model that nobody can click on."""
        if not card.click_model:
            raise BadRequest(f"{card.name} takes no points")

    async def answer(
        self,
        call: RequestContext[Any],
        data: bytes,
        clicks: Sequence[Click],
        kind: str | None,
    ) -> tuple[ServedRequest, RenderedMask]:
        """The object that is clicked, in the window around the first click on it.

        kind: the format of the overlay, where one is wanted.
        """
        view = await self._view(call, data, clicks)
        clicked = await self._outlined(call, view, clicks)
        began = monotonic()
        drawn = await self.route.decoding.draw(call.card.name, lambda: self._drawn(view, clicked, data, kind))
        done = monotonic()
        outcome = _whole(view, clicked)
        timings = {
            "decode": view.look.decode_s if view.look else 0.0,
            "queue": outcome.timings.queue_s,
            "compute": outcome.timings.compute_s,
            "render": done - began,
            "total": done - call.arrived,
        }
        met = self.route.met(call, outcome, done - call.arrived)
        cache = "miss" if view.look else "hit"
        return ServedRequest(call.id, call.card, [outcome], call.pinned, met, timings, cache), drawn

    async def _view(self, call: RequestContext[Any], data: bytes, clicks: Sequence[Click]) -> PromptView:
        """From what is kept, or from who looks at the same picture now, where that will do; else anew."""
        looks: list[PromptPass] = []

        async def look() -> CachedImage:
            looks.append(await self._look(call, data, clicks))
            return looks[-1].kept

        sights, floor = self.route.sights, call.objective.min_quality
        if sights is None or call.anew:
            kept = await look()
        else:
            async with deadline_timeout(call.objective.deadline):
                key = await feature_key(self.route, call.card, call, data)
            kept, _ = await sights.of(
                key, lambda kept: _view_of(kept, clicks, floor) is not None, call.objective.deadline, look
            )
        if looks:
            number = looks[-1].number
            return PromptView(kept.size, tiles(*kept.size)[number], kept.windows[number], looks[-1])
        found = _view_of(kept, clicks, floor)
        if found is None:
            raise FoveateError("what was seen of this picture does not answer for it")
        return found

    async def _look(self, call: RequestContext[Any], data: bytes, clicks: Sequence[Click]) -> PromptPass:
        """Decode the window that answers, and run it."""
        async with deadline_timeout(call.objective.deadline):
            cut, decode_s = await self.decode(call, data, lambda found, size: window_of(clicks, found, size))
        outcome = await self.route.submit(call, cut.pixels[0], features=True)
        number = window_of(clicks, tiles(*cut.size), cut.size)
        return PromptPass(
            CachedImage(cut.size, {number: window_features_of(outcome, call.card)}), number, decode_s, outcome
        )

    async def _outlined(
        self, call: RequestContext[Any], view: PromptView, clicks: Sequence[Click]
    ) -> Outcome:
        """One run of the light decoder, at the size at which the picture was seen."""
        card, side = self.route.cluster.cards()[call.card.click_model], view.seen.plan.image_size
        medium = Clicked(view.seen.features, within_box(clicks, view.window.box))
        request = Request(
            call.id, card.name, medium, medium.nbytes, task="clicks", objective=self.route.promised(call),
            plan=None if side == card.full.image_size else replace(card.full, image_size=side),
        )  # fmt: skip
        return await self.route.reserve(call).submit(request)

    def _drawn(self, view: PromptView, clicked: Outcome, data: bytes, kind: str | None) -> RenderedMask:
        """On a thread of the pool: whatever looks at every pixel of the picture."""
        mask, found = Image.new("L", view.size), list[ClassArea]()
        if clicked.result.maps is not None:
            mask, found = object_in(view, clicked.result.maps)
        over = None
        if kind is not None:
            over = overlay(decode_whole(data, self.route.settings.max_pixels), mask, kind)
        return RenderedMask(view.size, png(mask), over, found)


def _view_of(kept: CachedImage | None, clicks: Sequence[Click], min_quality: float) -> PromptView | None:
    """The window that answers, where it has been seen and well enough."""
    if kept is None:
        return None
    every = tiles(*kept.size)
    number = window_of(clicks, every, kept.size)
    seen = kept.windows.get(number)
    if seen is None or seen.quality < min_quality:
        return None
    return PromptView(kept.size, every[number], seen)


async def feature_key(route: TaskRoute[Any], card: ModelCard, call: RequestContext[Any], data: bytes) -> str:
    """The key of what a model has seen of a picture. That a picture has been seen before is nobody else's
    business."""
    asked = str(call.plan), call.objective.tenant
    told = repr((FOVEATE, card.name, card.weights, str(card.full), card.input, *asked))
    return await route.decoding.digest(told, data)


def object_in(view: PromptView, maps: ClassMaps) -> tuple[Image.Image, list[ClassArea]]:
    """The mask of the whole picture, 1 where the object is, and its area, where there is any."""
    left, top, right, bottom = view.window.box
    mask = Image.new("L", view.size)
    if maps.classes == (0, 1):
        mask.paste(above(maps.scores[1] - maps.scores[0], (right - left, bottom - top)), (left, top))
    elif maps.classes == (1,):
        mask.paste(1, view.window.box)
    box = mask.getbbox()
    if box is None:
        return mask, []
    there = _named(view.seen.maps)[_named(maps) == 1]
    best = int(np.bincount(there).argmax()) if there.size else 0
    return mask, [ClassArea(1, best - 1 if best else None, mask.histogram()[1], box)]


def _named(maps: ClassMaps) -> NDArray[np.uint8]:
    """The best class of each place (h, w)."""
    best: NDArray[np.uint8] = np.array(maps.classes, np.uint8)[maps.scores.argmax(0)]
    return best


def _whole(view: PromptView, clicked: Outcome) -> Outcome:
    """What this request took, and how well the picture was seen that it is answered from."""
    seen, gflops, times = view.seen, clicked.result.gflops, clicked.timings
    if view.look is not None:
        first = view.look.outcome
        gflops += first.result.gflops
        times = Timings(times.queue_s + first.timings.queue_s, times.compute_s + first.timings.compute_s)
    result = Result(clicked.result.scores, seen.tokens, seen.exit_layer, gflops)
    return Outcome(result, seen.plan, times, clicked.batch_size, seen.reason)
