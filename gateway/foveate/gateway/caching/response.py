"""The response cache: the same request about the same bytes is answered once."""

from collections.abc import Awaitable, Callable, Iterable
from importlib.metadata import version

from starlette.responses import Response

from foveate.cache import Cache
from foveate.cache.entry import CacheEntry
from foveate.cache.single_flight import CacheResult, SingleFlight
from foveate.core.metrics import Metrics
from foveate.core.model import ModelCard, Task
from foveate.core.request import Objective
from foveate.gateway.schemas.response import CacheableResponse, ReplyHeaders

FOVEATE_VERSION = version("foveate")
"""Part of every cache key: another version may answer differently."""


def cards_identity(task: Task, cards: Iterable[ModelCard]) -> str:
    """Everything about these models that their answers depend on, as a part of cache keys."""
    identity: list[object] = [FOVEATE_VERSION, task]
    for card in cards:
        rungs = [(str(rung.plan), rung.quality) for rung in card.ladder]
        identity.append(
            (card.name, card.weights, card.input, str(card.full), rungs, card.labels, card.zero_shot)
        )
    return repr(identity)


class ResponseCache:
    """Responses by key. Concurrent requests with one key share one computation."""

    def __init__(self, cache: Cache, ttl_s: float, max_entry_bytes: int, metrics: Metrics) -> None:
        """ttl_s: seconds that an entry lives; max_entry_bytes: larger responses are not cached."""
        self._single_flight = SingleFlight(cache, "answer", ttl_s, max_entry_bytes)
        counter = metrics.cache_requests
        self._counts = {result: counter.labels("answers", result) for result in ("hit", "coalesced", "miss")}

    async def get_or_compute(
        self,
        key: str,
        objective: Objective,
        compute: Callable[[], Awaitable[CacheableResponse]],
        headers: Callable[[float | None], ReplyHeaders],
    ) -> Response:
        """The cached response if its quality is high enough, else the computed one.

        headers: makes the headers of a cached response from its quality, None if that was never measured.
        Raises what `compute` raises.
        """
        computed: list[CacheableResponse] = []

        async def compute_entry() -> CacheEntry:
            computed.append(await compute())
            return computed[-1].entry

        def good(entry: CacheEntry) -> bool:
            return entry.quality >= objective.min_quality

        result: CacheResult = "miss"
        try:
            entry, result = await self._single_flight.get_or_compute(
                key, good, objective.deadline, compute_entry
            )
        finally:
            self._counts[result].inc()
        if not computed:
            return CacheableResponse(entry, headers(entry.measured_quality), result)
        computed[-1].headers.setdefault("x-cache", result)
        return computed[-1]
