"""Answers that were given before are given again, to whoever asks the same of the same bytes."""

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

FOVEATE = version("foveate")


def identity(task: Task, cards: Iterable[ModelCard]) -> str:
    """All that tells the answers of these models from those of others, or of the same with other weights."""
    told: list[object] = [FOVEATE, task]
    for card in cards:
        rungs = [(str(rung.plan), rung.quality) for rung in card.ladder]
        told.append((card.name, card.weights, card.input, str(card.full), rungs, card.labels))
    return repr(told)


class ResponseCache:
    """The response cache."""

    def __init__(self, cache: Cache, ttl_s: float, largest: int, metrics: Metrics) -> None:
        """largest: bytes of an answer that is kept, for so many seconds."""
        self._once = SingleFlight(cache, "answer", ttl_s, largest)
        counted = metrics.cache_requests
        self._counts = {how: counted.labels("answers", how) for how in ("hit", "coalesced", "miss")}

    async def of(
        self,
        key: str,
        objective: Objective,
        work: Callable[[], Awaitable[CacheableResponse]],
        reply: Callable[[float | None], ReplyHeaders],
    ) -> Response:
        """The answer under the key, from wherever it is quickest to have.

        reply: what an answer of some quality, None where nobody measured, is sent with that is there already.
        Raises what `work` raises.
        """
        made: list[CacheableResponse] = []

        async def computed() -> CacheEntry:
            made.append(await work())
            return made[-1].entry

        def good(entry: CacheEntry) -> bool:
            return entry.quality >= objective.min_quality

        how: CacheResult = "miss"
        try:
            entry, how = await self._once.get_or_compute(key, good, objective.deadline, computed)
        finally:
            self._counts[how].inc()
        if not made:
            return CacheableResponse(entry, reply(entry.measured_quality), how)
        made[-1].headers.setdefault("x-cache", how)
        return made[-1]
