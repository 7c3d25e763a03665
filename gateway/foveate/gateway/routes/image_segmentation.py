"""Masks of whole images: from cached features, or from a run of the model over every tile of the image."""

from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any

from foveate.core.outcome import Outcome
from foveate.gateway.caching.features import CachedImage, feature_key, tile_features_of
from foveate.gateway.media.image_format import Size
from foveate.gateway.media.masks import RenderedMask, areas, assemble_mask
from foveate.gateway.media.tiling import tiles
from foveate.gateway.routes.admission import Admission
from foveate.gateway.routes.completion import complete
from foveate.gateway.routes.context import RequestContext
from foveate.gateway.routes.image_input import ImageInput
from foveate.gateway.routes.mask_rendering import render_mask
from foveate.gateway.routes.services import Meters, RouteServices
from foveate.gateway.schemas.response import ServedRequest


@dataclass(frozen=True, slots=True)
class TileOutcomes:
    """The model's answer for every tile of an image."""

    size: Size
    """Width and height of the upright image."""
    outcomes: Sequence[Outcome]
    """One for each tile."""
    decode_s: float
    cache: str
    """`hit` if all tiles came from the feature cache, else empty."""


class ImageSegmenter:
    """Segments whole images."""

    def __init__(
        self, services: RouteServices, admission: Admission, meters: Meters, image_input: ImageInput
    ) -> None:
        self.services, self.admission, self.meters = services, admission, meters
        self.image_input = image_input

    async def answer(
        self, context: RequestContext[Any], data: bytes, overlay_format: str | None
    ) -> tuple[ServedRequest, RenderedMask]:
        """The mask of the whole image. Raises FoveateError.

        overlay_format: the image format of the overlay; None makes none.
        """
        image = await self._segment(context, data)
        render_started = monotonic()
        rendered = await self.services.decoding.render(
            context.card.name,
            lambda: self._render(image, data, overlay_format),
            image.size[0] * image.size[1],
        )
        served = complete(
            self.meters,
            context,
            image.outcomes,
            image.decode_s,
            render_started=render_started,
            cache=image.cache,
        )
        return served, rendered

    async def _segment(self, context: RequestContext[Any], data: bytes) -> TileOutcomes:
        """The outcome of every tile: from the feature cache, or computed.

        Requests for the same image share one computation, point prompts included.
        """
        feature_cache, card = self.services.feature_cache, context.card
        if feature_cache is None or context.bypass_cache or not (card.click_model and card.weights):
            return await self._run(context, data)
        computed: list[TileOutcomes] = []

        async def compute() -> CachedImage:
            computed.append(await self._run(context, data, features=True))
            return cacheable(computed[-1], context)

        def complete_enough(image: CachedImage) -> bool:
            features = [image.tiles.get(number) for number in range(len(tiles(*image.size)))]
            return all(each and each.quality >= context.objective.min_quality for each in features)

        key = await feature_key(self.services.decoding, card, context.plan, context.objective.tenant, data)
        cached = await feature_cache.get_or_compute(key, complete_enough, context.objective.deadline, compute)
        if computed:
            return computed[-1]
        outcomes = [cached.tiles[number].outcome() for number in sorted(cached.tiles)]
        return TileOutcomes(cached.size, outcomes, 0.0, "hit")

    async def _run(
        self, context: RequestContext[Any], data: bytes, *, features: bool = False
    ) -> TileOutcomes:
        """Reserve, decode the image and run the model on every tile."""
        self.admission.reserve(context)
        image, decode_s = await self.image_input.decode_tiles(context, data)
        outcomes = await self.admission.submit_all(context, image.pixels, features=features)
        return TileOutcomes(image.size, outcomes, decode_s, "")

    def _render(self, image: TileOutcomes, data: bytes, overlay_format: str | None) -> RenderedMask:
        """The mask at the image's size. Runs on a pool thread: it touches every pixel."""
        maps = [outcome.result.maps for outcome in image.outcomes if outcome.result.maps is not None]
        mask = assemble_mask(image.size, tiles(*image.size), maps)
        max_pixels = self.services.settings.max_pixels
        return render_mask(image.size, mask, areas(mask), data, overlay_format, max_pixels)


def cacheable(image: TileOutcomes, context: RequestContext[Any]) -> CachedImage:
    """The features of all tiles; of none, if the plan of any tile keeps no features."""
    if any(outcome.result.features is None for outcome in image.outcomes):
        return CachedImage(image.size, {})
    features = [tile_features_of(outcome, context.card) for outcome in image.outcomes]
    return CachedImage(image.size, dict(enumerate(features)))
