"""Point prompts on images: the features of the image are cached, and each click runs a light decoder.

InterFormer's split ("InterFormer: Real-time Interactive Image Segmentation", ICCV 2023): a heavy encoder
once for each image, a light decoder for each click.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import monotonic
from typing import Any

from PIL import Image

from foveate.core.errors import BadRequest, FoveateError
from foveate.core.model import ModelCard
from foveate.core.outcome import Outcome, Result, Timings
from foveate.core.point_prompts import PointPrompt
from foveate.core.request import Request
from foveate.gateway.caching.features import CachedImage, TileFeatures, feature_key, tile_features_of
from foveate.gateway.limits import deadline_timeout
from foveate.gateway.media.masks import ClassArea, RenderedMask
from foveate.gateway.media.tiling import Tile, tiles
from foveate.gateway.routes.admission import Admission
from foveate.gateway.routes.completion import complete
from foveate.gateway.routes.context import RequestContext
from foveate.gateway.routes.image_input import ImageInput
from foveate.gateway.routes.mask_rendering import object_mask, render_mask
from foveate.gateway.routes.points import Click, tile_of, within_box
from foveate.gateway.routes.services import Meters, RouteServices
from foveate.gateway.schemas.response import ServedRequest


@dataclass(frozen=True, slots=True)
class EncodedTile:
    """One run of the encoder over one tile of an image."""

    image: CachedImage
    number: int
    """The tile's number among the tiles of the image."""
    decode_s: float
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class PromptTile:
    """The tile that answers the clicks, and its features."""

    size: tuple[int, int]
    """Width and height of the upright image."""
    tile: Tile
    features: TileFeatures
    encoded: EncodedTile | None = None
    """The encoder's run, if this request made it; None: the features were cached."""


class PointPromptHandler:
    """Answers point prompts for segmentation models with a point-prompt model."""

    def __init__(
        self, services: RouteServices, admission: Admission, meters: Meters, image_input: ImageInput
    ) -> None:
        self.services, self.admission, self.meters = services, admission, meters
        self.image_input = image_input

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
        """The clicked object, in the tile around the first click on it. Raises FoveateError.

        overlay_format: the image format of the overlay; None makes none.
        """
        prompt = await self._prompt_tile(context, data, clicks)
        answer = await self._run_decoder(context, prompt, clicks)
        render_started = monotonic()
        rendered = await self.services.decoding.render(
            context.card.name,
            lambda: self._render(prompt, answer, data, overlay_format),
            prompt.size[0] * prompt.size[1],
        )
        served = complete(
            self.meters,
            context,
            [total_outcome(prompt, answer)],
            prompt.encoded.decode_s if prompt.encoded else 0.0,
            render_started=render_started,
            cache="miss" if prompt.encoded else "hit",
        )
        return served, rendered

    async def _prompt_tile(
        self, context: RequestContext[Any], data: bytes, clicks: Sequence[Click]
    ) -> PromptTile:
        """The tile's features: cached, from a request that computes them now, or computed here."""
        computed: list[EncodedTile] = []

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
            image = await feature_cache.get_or_compute(
                key,
                lambda image: cached_tile(image, clicks, min_quality) is not None,
                context.objective.deadline,
                compute,
            )
        if computed:
            number = computed[-1].number
            return PromptTile(image.size, tiles(*image.size)[number], image.tiles[number], computed[-1])
        prompt = cached_tile(image, clicks, min_quality)
        if prompt is None:
            raise FoveateError("the cached features of this image do not cover the clicked tile")
        return prompt

    async def _run_encoder(
        self, context: RequestContext[Any], data: bytes, clicks: Sequence[Click]
    ) -> EncodedTile:
        """Decode the tile of the clicks and run the segmentation model on it."""
        image, decode_s = await self.image_input.decode_tiles(
            context, data, lambda candidates, size: tile_of(clicks, candidates, size)
        )
        outcome = await self.admission.submit(context, image.pixels[0], features=True)
        number = tile_of(clicks, tiles(*image.size), image.size)
        features = {number: tile_features_of(outcome, context.card)}
        return EncodedTile(CachedImage(image.size, features), number, decode_s, outcome)

    async def _run_decoder(
        self, context: RequestContext[Any], prompt: PromptTile, clicks: Sequence[Click]
    ) -> Outcome:
        """Run the point-prompt model, at the image size of the features."""
        card = self.services.cluster.cards()[context.card.click_model]
        side = prompt.features.plan.image_size
        media = PointPrompt(prompt.features.features, within_box(clicks, prompt.tile.box))
        request = Request(
            context.id, card.name, media, media.nbytes, task="clicks",
            objective=self.admission.engine_objective(context),
            plan=None if side == card.full.image_size else replace(card.full, image_size=side),
        )  # fmt: skip
        return await self.admission.reserve(context).submit(request)

    def _render(
        self, prompt: PromptTile, answer: Outcome, data: bytes, overlay_format: str | None
    ) -> RenderedMask:
        """The mask at the image's size. Runs on a pool thread: it touches every pixel."""
        mask, class_areas = Image.new("L", prompt.size), list[ClassArea]()
        if answer.result.maps is not None:
            mask, class_areas = object_mask(
                prompt.size, prompt.tile.box, answer.result.maps, prompt.features.maps
            )
        max_pixels = self.services.settings.max_pixels
        return render_mask(prompt.size, mask, class_areas, data, overlay_format, max_pixels)


def cached_tile(image: CachedImage | None, clicks: Sequence[Click], min_quality: float) -> PromptTile | None:
    """The tile that answers the clicks, if its features are cached at this quality or above."""
    if image is None:
        return None
    image_tiles = tiles(*image.size)
    number = tile_of(clicks, image_tiles, image.size)
    features = image.tiles.get(number)
    if features is None or features.quality < min_quality:
        return None
    return PromptTile(image.size, image_tiles[number], features)


def total_outcome(prompt: PromptTile, answer: Outcome) -> Outcome:
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
