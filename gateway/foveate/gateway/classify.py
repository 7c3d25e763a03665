"""POST /classify: one picture in, its classes and what they cost out."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from starlette.requests import Request as HttpRequest

from foveate.core.errors import BadRequest
from foveate.core.model import InputSpec, ModelCard, Task
from foveate.core.outcome import Outcome
from foveate.gateway.call import Call
from foveate.gateway.clip_wire import named_clip
from foveate.gateway.endpoint import Endpoint, within
from foveate.gateway.media import decode_image
from foveate.gateway.reply import Answered, Served
from foveate.gateway.spool import Medium
from foveate.gateway.watching import Watching, middle
from foveate.gateway.wire import classification


@dataclass(frozen=True, slots=True)
class Asked:
    """What a classification may ask for."""

    top_k: int
    explain: bool


class Classifier(Endpoint[Asked]):
    """The route."""

    task: Task = "classify"

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.watching = Watching(self)

    def options(self, http: HttpRequest, headers: Mapping[str, str], card: ModelCard) -> Asked:
        if not card.labels:
            raise BadRequest(f"{card.name} has no classifier; it only makes features")
        top_k = read_top_k(http.query_params.get("top_k"))
        return Asked(top_k, read_flag("explain", http.query_params.get("explain")))

    async def work(self, call: Call[Asked], data: Medium, encoded: bool) -> Answered:
        """Decode, run, render."""
        media: Any = data
        decode_s = 0.0
        if call.card.input is not None or encoded:
            async with within(call.objective.deadline):
                data = await self.plain(data, encoded)
            call = self.for_medium(call, await self.watching.is_film(data))
            if call.card.frames or isinstance(data, Path):
                return await self._watched(call, data)
            async with within(call.objective.deadline):
                media, decode_s = await self._decode(call, data)
        outcome = await self.submit(call, media, expected=True, explain=call.options.explain)
        served = self._served(call, outcome, decode_s)
        return classification(served, call.options.top_k, call.options.explain)

    async def _watched(self, call: Call[Asked], data: Medium) -> Answered:
        """As `work`, of a clip."""
        spec = call.card.input or InputSpec()
        clip, decode_s = await self.watching.decode(call, data, middle(spec, call.card.full.image_size))
        outcome = await self.submit(call, clip.pixels[0], expected=True)
        served = self._served(call, outcome, decode_s)
        return named_clip(served, clip, call.options.top_k, call.options.explain)

    def _served(self, call: Call[Asked], outcome: Outcome, decode_s: float) -> Served:
        """The answer is there: it is counted."""
        total_s = monotonic() - call.arrived
        met = self.met(call, outcome, total_s)
        timings = {
            "decode": decode_s,
            "queue": outcome.timings.queue_s,
            "compute": outcome.timings.compute_s,
            "total": total_s,
        }
        return Served(call.id, call.card, [outcome], call.pinned, met, timings)

    async def _decode(self, call: Call[Asked], data: bytes) -> tuple[Any, float]:
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
