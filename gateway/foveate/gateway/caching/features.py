"""The feature cache: cached features of an image answer points, masks and classes without the trunk."""

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from foveate.cache import Cache
from foveate.cache.entry import CacheEntry
from foveate.cache.single_flight import CacheResult, SingleFlight
from foveate.core.errors import BadPlan
from foveate.core.metrics import Metrics
from foveate.core.model import ModelCard
from foveate.core.outcome import ClassMaps, Outcome, Reason, Result, Timings
from foveate.core.plan import Plan
from foveate.core.point_prompts import Features
from foveate.gateway.caching.response import FOVEATE_VERSION
from foveate.gateway.decoding import Decoding

log = logging.getLogger(__name__)

NO_SCORES = np.empty(0, np.float32)
DTYPES = (np.float16, np.float16, np.float16, np.float32)
"""Of a tile's arrays in a cache entry: coarse and fine features, class maps, class scores."""


@dataclass(frozen=True, slots=True)
class TileFeatures:
    """What a model computed for one tile of an image, and at which quality."""

    features: Features
    maps: ClassMaps
    plan: Plan
    quality: float
    """Measured quality of the plan; 0 if it was never measured."""
    reason: Reason
    tokens: int
    exit_layer: int
    class_scores: NDArray[np.float32] = field(default_factory=lambda: NO_SCORES)
    """(C,) class probabilities of the tile; empty if the trunk has no classifier."""

    def outcome(self) -> Outcome:
        """The outcome of a request that these features answer: it costs nothing."""
        result = Result(NO_SCORES, self.tokens, self.exit_layer, 0.0, maps=self.maps, features=self.features)
        return Outcome(result, self.plan, Timings(0.0, 0.0), 1, self.reason)


@dataclass(frozen=True, slots=True)
class CachedImage:
    """The features of the tiles of one image."""

    size: tuple[int, int]
    """Width and height of the upright image."""
    tiles: Mapping[int, TileFeatures]
    """By tile number; tiles that were never computed are missing."""

    def merged_with(self, old: "CachedImage | None") -> "CachedImage":
        """This image, with the tiles of an older entry that have full quality."""
        if old is None:
            return self
        best = {number: tile for number, tile in old.tiles.items() if tile.quality >= 1}
        return CachedImage(self.size, {**self.tiles, **best})

    def entry(self) -> CacheEntry:
        """The cache entry; its quality is the lowest of the tiles."""
        fields, parts = [], list[bytes]()
        for number, tile in self.tiles.items():
            arrays = (tile.features.coarse, tile.features.fine, tile.maps.scores, tile.class_scores)
            parts += [np.ascontiguousarray(array).tobytes() for array in arrays]
            fields.append(
                {
                    "number": number,
                    "plan": str(tile.plan),
                    "quality": tile.quality,
                    "reason": tile.reason,
                    "tokens": tile.tokens,
                    "exit_layer": tile.exit_layer,
                    "classes": tile.maps.classes,
                    "shapes": [array.shape for array in arrays],
                }
            )
        quality = min((tile.quality for tile in self.tiles.values()), default=0.0)
        # "windows", as in responses: the keys of stored entries stay as they are.
        return CacheEntry(quality, {"size": self.size, "windows": fields}, tuple(parts))


def cached_image_of(entry: CacheEntry | None) -> CachedImage | None:
    """The inverse of `CachedImage.entry`; None for an entry of another version.

    The arrays are read-only views of the entry's bytes.
    """
    if entry is None:
        return None
    try:
        return _parse(entry)
    except (KeyError, IndexError, TypeError, ValueError, BadPlan):
        log.warning("the feature cache holds an entry of another version; it is ignored")
        return None


def _parse(entry: CacheEntry) -> CachedImage:
    size = cast("tuple[int, int]", entry.fields["size"])
    tiles = {}
    for index, fields in enumerate(cast("list[Any]", entry.fields["windows"])):
        parts = entry.parts[len(DTYPES) * index : len(DTYPES) * (index + 1)]
        coarse, fine, maps, class_scores = (
            np.frombuffer(part, dtype).reshape(shape)
            for part, dtype, shape in zip(parts, DTYPES, fields["shapes"], strict=True)
        )
        tiles[fields["number"]] = TileFeatures(
            Features(coarse, fine), ClassMaps(tuple(fields["classes"]), maps), Plan.parse(fields["plan"]),
            fields["quality"], fields["reason"], fields["tokens"], fields["exit_layer"], class_scores,
        )  # fmt: skip
    return CachedImage((size[0], size[1]), tiles)


def tile_features_of(outcome: Outcome, card: ModelCard) -> TileFeatures:
    """The features in a model's outcome. Raises BadPlan if its plan keeps none."""
    result = outcome.result
    if result.features is None or result.maps is None:
        raise BadPlan(f"{outcome.plan} keeps no features, so it cannot answer points; choose another plan")
    return TileFeatures(
        result.features, result.maps, outcome.plan, card.quality_of(outcome.plan) or 0.0, outcome.reason,
        result.tokens, result.exit_layer, NO_SCORES if result.image_scores is None else result.image_scores,
    )  # fmt: skip


async def feature_key(
    decoding: Decoding, card: ModelCard, plan: Plan | None, tenant: str, data: bytes
) -> str:
    """The cache key of an image's features.

    The tenant is part of the key: whether an image is cached must not be visible to other tenants.
    """
    identity = (FOVEATE_VERSION, card.name, card.weights, str(card.full), card.input, str(plan), tenant)
    return await decoding.digest(repr(identity), data)


class FeatureCache:
    """Images by key. Concurrent requests for one image share one computation."""

    def __init__(self, cache: Cache, ttl_s: float, max_entry_bytes: int, metrics: Metrics) -> None:
        """ttl_s: seconds that an entry lives; max_entry_bytes: larger entries are not cached."""
        self._single_flight = SingleFlight(cache, "features", ttl_s, max_entry_bytes)
        counter = metrics.cache_requests
        self._counts = {result: counter.labels("features", result) for result in ("hit", "coalesced", "miss")}

    async def find(self, key: str) -> CachedImage | None:
        """The cached image, or None."""
        return cached_image_of(await self._single_flight.get(key))

    def count_hit(self) -> None:
        """Count a request that was answered by an image from `find`."""
        self._counts["hit"].inc()

    async def get_or_compute(
        self,
        key: str,
        good: Callable[[CachedImage], bool],
        deadline: float | None,
        compute: Callable[[], Awaitable[CachedImage]],
    ) -> CachedImage:
        """The cached image if it is good enough; else the computed one, merged into the cached one.

        deadline: monotonic clock seconds. Raises what `compute` raises.
        """

        async def compute_entry() -> CacheEntry:
            return (await compute()).merged_with(await self.find(key)).entry()

        def good_entry(entry: CacheEntry) -> bool:
            image = cached_image_of(entry)
            return image is not None and good(image)

        result: CacheResult = "miss"
        try:
            entry, result = await self._single_flight.get_or_compute(key, good_entry, deadline, compute_entry)
        finally:
            self._counts[result].inc()
        return _parse(entry)
