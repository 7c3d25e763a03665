"""What was seen of a picture, for whatever is asked of it next: clicks, its mask, its classes."""

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from foveate.cache import Cache
from foveate.cache.entry import CacheEntry
from foveate.cache.single_flight import CacheResult, SingleFlight
from foveate.core.clicks import Features
from foveate.core.errors import BadPlan
from foveate.core.metrics import Metrics
from foveate.core.model import ModelCard
from foveate.core.outcome import ClassMaps, Outcome, Reason, Result, Timings
from foveate.core.plan import Plan
from foveate.gateway.objective import quality_of

log = logging.getLogger(__name__)

NOTHING = np.empty(0, np.float32)


@dataclass(frozen=True, slots=True)
class WindowFeatures:
    """One window of a picture, as its model has understood it, and how well."""

    features: Features
    maps: ClassMaps
    plan: Plan
    quality: float
    """Of the plan, as measured; 0 where nobody did."""
    reason: Reason
    tokens: int
    exit_layer: int
    named: NDArray[np.float32] = field(default_factory=lambda: NOTHING)
    """(C,) class probabilities of the whole window; empty where its trunk could not tell."""

    def outcome(self) -> Outcome:
        """As if it were seen now, at no cost."""
        result = Result(NOTHING, self.tokens, self.exit_layer, 0.0, maps=self.maps, features=self.features)
        return Outcome(result, self.plan, Timings(0.0, 0.0), 1, self.reason)


@dataclass(frozen=True, slots=True)
class CachedImage:
    """A picture, as far as it has been seen."""

    size: tuple[int, int]
    """Width and height, upright."""
    windows: Mapping[int, WindowFeatures]
    """By their numbers among the picture's windows."""

    def merged_with(self, old: "CachedImage | None") -> "CachedImage":
        """With what was seen before as well as can be: what was seen under load does not outlive it."""
        if old is None:
            return self
        best = {number: seen for number, seen in old.windows.items() if seen.quality >= 1}
        return CachedImage(self.size, {**self.windows, **best})

    def entry(self) -> CacheEntry:
        """As a cache keeps it."""
        told, parts = [], list[bytes]()
        for number, seen in self.windows.items():
            arrays = (seen.features.coarse, seen.features.fine, seen.maps.scores, seen.named)
            parts += [np.ascontiguousarray(array).tobytes() for array in arrays]
            told.append(
                {
                    "number": number,
                    "plan": str(seen.plan),
                    "quality": seen.quality,
                    "reason": seen.reason,
                    "tokens": seen.tokens,
                    "exit_layer": seen.exit_layer,
                    "classes": seen.maps.classes,
                    "shapes": [array.shape for array in arrays],
                }
            )
        quality = min((seen.quality for seen in self.windows.values()), default=0.0)
        return CacheEntry(quality, {"size": self.size, "windows": told}, tuple(parts))


def cached_image_of(entry: CacheEntry | None) -> CachedImage | None:
    """What `Kept.entry` gave; None for anything else. Arrays are views of its bytes, to be read only."""
    if entry is None:
        return None
    try:
        return _kept_in(entry)
    except (KeyError, IndexError, TypeError, ValueError, BadPlan):
        log.warning("an entry of the feature cache is none of this version's")
        return None


def _kept_in(entry: CacheEntry) -> CachedImage:
    size, told = cast("tuple[int, int]", entry.fields["size"]), cast("list[Any]", entry.fields["windows"])
    found = {}
    for number, window in enumerate(told):
        kinds = (np.float16, np.float16, np.float16, np.float32)
        coarse, fine, scores, named = (
            np.frombuffer(part, kind).reshape(shape)
            for part, kind, shape in zip(
                entry.parts[4 * number : 4 * number + 4], kinds, window["shapes"], strict=True
            )
        )
        found[window["number"]] = WindowFeatures(
            Features(coarse, fine), ClassMaps(tuple(window["classes"]), scores), Plan.parse(window["plan"]),
            window["quality"], window["reason"], window["tokens"], window["exit_layer"], named,
        )  # fmt: skip
    return CachedImage((size[0], size[1]), found)


def window_features_of(outcome: Outcome, card: ModelCard) -> WindowFeatures:
    """What of a model's answer later questions need. Raises BadPlan where the plan keeps none of it."""
    result = outcome.result
    if result.features is None or result.maps is None:
        raise BadPlan(f"{outcome.plan} keeps nothing that clicks could be answered from")
    return WindowFeatures(
        result.features, result.maps, outcome.plan, quality_of(card, outcome.plan) or 0.0, outcome.reason,
        result.tokens, result.exit_layer, NOTHING if result.named is None else result.named,
    )  # fmt: skip


class FeatureCache:
    """The feature cache: pictures by key. Who looks at the same one at the same time looks at it once."""

    def __init__(self, cache: Cache, ttl_s: float, largest: int, metrics: Metrics) -> None:
        """largest: bytes of a picture's features that are kept, for so many seconds."""
        self._once = SingleFlight(cache, "features", ttl_s, largest)
        counted = metrics.cache_requests
        self._counts = {how: counted.labels("features", how) for how in ("hit", "coalesced", "miss")}

    async def find(self, key: str) -> CachedImage | None:
        """What is known of a picture already."""
        return cached_image_of(await self._once.get(key))

    def used(self) -> None:
        """What was found answered a request."""
        self._counts["hit"].inc()

    async def of(
        self,
        key: str,
        good: Callable[[CachedImage], bool],
        deadline: float | None,
        work: Callable[[], Awaitable[CachedImage]],
    ) -> tuple[CachedImage, CacheResult]:
        """What is known of a picture, where it is good enough; else what `work` sees in it, which is added to
        what others have seen of it. Raises what `work` raises."""

        async def look() -> CacheEntry:
            return (await work()).merged_with(await self.find(key)).entry()

        def fits(entry: CacheEntry) -> bool:
            kept = cached_image_of(entry)
            return kept is not None and good(kept)

        how: CacheResult = "miss"
        try:
            entry, how = await self._once.get_or_compute(key, fits, deadline, look)
        finally:
            self._counts[how].inc()
        return _kept_in(entry), how
