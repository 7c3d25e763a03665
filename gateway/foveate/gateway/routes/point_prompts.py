"""Point prompts on images: the features of the image are cached, and each click runs a light decoder.

InterFormer's split ("InterFormer: Real-time Interactive Image Segmentation", ICCV 2023): a heavy encoder
once for each image, a light decoder for each click.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from time import monotonic
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from foveate.core.errors import BadRequest, FoveateError
from foveate.core.model import ModelCard
from foveate.core.outcome import ClassMaps, Outcome, Result, Timings
from foveate.core.point_prompts import PointPrompt
from foveate.core.request import Request
from foveate.gateway.caching.features import CachedImage, WindowFeatures, feature_key, window_features_of
from foveate.gateway.limits import deadline_timeout
from foveate.gateway.media.image_tiles import TiledImage, TileSelector, decode_whole
from foveate.gateway.media.masks import ClassArea, RenderedMask, encode_mask, overlay, threshold_mask
from foveate.gateway.media.tiling import Tile, tiles
from foveate.gateway.routes.admission import Admission
from foveate.gateway.routes.context import RequestContext
from foveate.gateway.routes.points import Click, window_of, within_box
from foveate.gateway.routes.services import Meters, RouteServices
from foveate.gateway.schemas.response import ServedRequest

Decode = Callable[[RequestContext[Any], bytes, TileSelector], Awaitable[tuple[TiledImage, float]]]
"""Decodes the chosen window of an image; also gives the seconds that it took."""


@dataclass(frozen=True, slots=True)
class EncodedWindow:
    """One run of the encoder over one window of an image."""

    image: CachedImage
    number: int
    """The window's number among the windows of the image."""
    decode_s: float
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class PromptWindow:
    """The window that answers the clicks, and its features."""

    size: tuple[int, int]
    """Width and height of the upright image."""
    window: Tile
    features: WindowFeatures
    encoded: EncodedWindow | None = None
    """The encoder's run, if this request made it; None: the features were cached."""


class PointPromptHandler:
    """Answers point prompts for models that have a point-prompt model beside them."""

    def __init__(self, services: RouteServices, admission: Admission, meters: Meters, decode: Decode) -> None:
        self.services, self.admission, self.meters, self.decode = services, admission, meters, decode

    def check(self, card: ModelCard) -> None:
        """Raises BadRequest for a model that takes no points."""
        if not card.click_model:
            raise BadRequest(f"{card.name} takes no points")

    async def answer(
        self,
        context: RequestContext[Any],
        data: bytes,
        clicks: Sequence[Click],
        overlay_format: str | None,
    ) -> tuple[ServedRequest, RenderedMask]:
        """The clicked object, in the window around the first click on it. Raises FoveateError.

        overlay_format: the image format of the overlay; None makes none.
        """
        prompt = await self._prompt_window(context, data, clicks)
        answer = await self._run_decoder(context, prompt, clicks)
        render_started = monotonic()
        rendered = await self.services.decoding.render(
            context.card.name, lambda: self._render(prompt, answer, data, overlay_format)
        )
        now = monotonic()
        outcome = total_outcome(prompt, answer)
        timings_s = {
            "decode": prompt.encoded.decode_s if prompt.encoded else 0.0,
            "queue": outcome.timings.queue_s,
            "compute": outcome.timings.compute_s,
            "render": now - render_started,
            "total": now - context.arrived,
        }
        met = context.deadline_met(now - context.arrived)
        self.meters[context.card.name].record(outcome, now - context.arrived, met)
        cache = "miss" if prompt.encoded else "hit"
        served = ServedRequest(context.id, context.card, [outcome], context.pinned, met, timings_s, cache)
        return served, rendered

    async def _prompt_window(
        self, context: RequestContext[Any], data: bytes, clicks: Sequence[Click]
    ) -> PromptWindow:
        """The window's features: cached, from a request that computes them now, or computed here."""
        computed: list[EncodedWindow] = []

        async def compute() -> CachedImage:
            computed.append(await self._run_encoder(context, data, clicks))
            return computed[-1].image

        feature_cache, min_quality = self.services.feature_cache, context.objective.min_quality
        if feature_cache is None or context.bypass_cache:
            image = await compute()
        else:
            async with deadline_timeout(context.objective.deadline):
                key = await feature_key(
                    self.services.decoding, context.card, context.plan, context.objective.tenant, data
                )
            image, _ = await feature_cache.get_or_compute(
                key,
                lambda image: cached_window(image, clicks, min_quality) is not None,
                context.objective.deadline,
                compute,
            )
        if computed:
            number = computed[-1].number
            return PromptWindow(image.size, tiles(*image.size)[number], image.windows[number], computed[-1])
        prompt = cached_window(image, clicks, min_quality)
        if prompt is None:
            raise FoveateError("the cached features of this picture do not cover the clicked window")
        return prompt

    async def _run_encoder(
        self, context: RequestContext[Any], data: bytes, clicks: Sequence[Click]
    ) -> EncodedWindow:
        """Decode the window of the clicks and run the segmentation model on it."""
        async with deadline_timeout(context.objective.deadline):
            image, decode_s = await self.decode(
                context, data, lambda windows, size: window_of(clicks, windows, size)
            )
        outcome = await self.admission.submit(context, image.pixels[0], features=True)
        number = window_of(clicks, tiles(*image.size), image.size)
        windows = {number: window_features_of(outcome, context.card)}
        return EncodedWindow(CachedImage(image.size, windows), number, decode_s, outcome)

    async def _run_decoder(
        self, context: RequestContext[Any], prompt: PromptWindow, clicks: Sequence[Click]
    ) -> Outcome:
        """Run the point-prompt model, at the image size of the features."""
        card = self.services.cluster.cards()[context.card.click_model]
        side = prompt.features.plan.image_size
        media = PointPrompt(prompt.features.features, within_box(clicks, prompt.window.box))
        request = Request(
            context.id, card.name, media, media.nbytes, task="clicks",
            objective=self.admission.engine_objective(context),
            plan=None if side == card.full.image_size else replace(card.full, image_size=side),
        )  # fmt: skip
        return await self.admission.reserve(context).submit(request)

    def _render(
        self, prompt: PromptWindow, answer: Outcome, data: bytes, overlay_format: str | None
    ) -> RenderedMask:
        """The mask at the image's size. Runs on a pool thread: it touches every pixel."""
        mask, areas = Image.new("L", prompt.size), list[ClassArea]()
        if answer.result.maps is not None:
            mask, areas = object_mask(prompt, answer.result.maps)
        blended = None
        if overlay_format is not None:
            whole = decode_whole(data, self.services.settings.max_pixels)
            blended = overlay(whole, mask, overlay_format)
        return RenderedMask(prompt.size, encode_mask(mask), blended, areas)


def cached_window(
    image: CachedImage | None, clicks: Sequence[Click], min_quality: float
) -> PromptWindow | None:
    """The window that answers the clicks, if its features are cached at this quality or above."""
    if image is None:
        return None
    windows = tiles(*image.size)
    number = window_of(clicks, windows, image.size)
    features = image.windows.get(number)
    if features is None or features.quality < min_quality:
        return None
    return PromptWindow(image.size, windows[number], features)


def object_mask(prompt: PromptWindow, maps: ClassMaps) -> tuple[Image.Image, list[ClassArea]]:
    """The mask of the whole image, 1 on the object, and the object's area; no area for an empty mask."""
    left, top, right, bottom = prompt.window.box
    mask = Image.new("L", prompt.size)
    if maps.classes == (0, 1):
        mask.paste(threshold_mask(maps.scores[1] - maps.scores[0], (right - left, bottom - top)), (left, top))
    elif maps.classes == (1,):
        mask.paste(1, prompt.window.box)
    box = mask.getbbox()
    if box is None:
        return mask, []
    classes = best_classes(prompt.features.maps)[best_classes(maps) == 1]
    best = int(np.bincount(classes).argmax()) if classes.size else 0
    return mask, [ClassArea(1, best - 1 if best else None, mask.histogram()[1], box)]


def best_classes(maps: ClassMaps) -> NDArray[np.uint8]:
    """The best class of each place of the maps: (h, w)."""
    best: NDArray[np.uint8] = np.array(maps.classes, np.uint8)[maps.scores.argmax(0)]
    return best


def total_outcome(prompt: PromptWindow, answer: Outcome) -> Outcome:
    """The cost of this request, encoder and decoder together, under the plan of the features."""
    features, gflops, timings = prompt.features, answer.result.gflops, answer.timings
    if prompt.encoded is not None:
        encoder = prompt.encoded.outcome
        gflops += encoder.result.gflops
        timings = Timings(
            timings.queue_s + encoder.timings.queue_s, timings.compute_s + encoder.timings.compute_s
        )
    result = Result(answer.result.scores, features.tokens, features.exit_layer, gflops)
    return Outcome(result, features.plan, timings, answer.batch_size, features.reason)
