"""POST /segment: one picture in, what each of its pixels shows out."""

import asyncio
import re
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from foveate.core.errors import UnsupportedMedia
from foveate.core.model import ModelCard, Task
from foveate.core.outcome import Outcome
from foveate.gateway.classify import read_flag
from foveate.gateway.endpoint import Call, Endpoint, within
from foveate.gateway.masks import Drawn, areas, assembled, overlay, png
from foveate.gateway.whole import Cut, decode_whole, decode_windows
from foveate.gateway.wire import Served, segmentation


@dataclass(frozen=True, slots=True)
class Asked:
    """What a segmentation may ask for."""

    overlay: bool
    picture: bool
    """The mask or the overlay itself, as image/png, and no JSON around it."""


class Segmenter(Endpoint[Asked]):
    """The route."""

    task: Task = "segment"

    def options(self, http: HttpRequest, headers: Mapping[str, str], card: ModelCard) -> Asked:
        wants = [part.partition(";")[0].strip() for part in headers.get("accept", "").lower().split(",")]
        # Whoever names a picture type gets a picture; */* and nothing at all mean JSON.
        picture = any(re.fullmatch(r"image/(png|\*)", kind) for kind in wants)
        return Asked(read_flag("overlay", http.query_params.get("overlay")), picture)

    async def work(self, call: Call[Asked], data: bytes, encoded: bool) -> Response:
        """Decode, run all windows, put the mask together, render."""
        async with within(call.objective.deadline):
            data = await self.plain(data, encoded)
            cut, decode_s = await self._decode(call, data)
        outcomes = await together(
            *(self.submit(call, pixels, expected=not number) for number, pixels in enumerate(cut.pixels))
        )
        began = monotonic()
        drawn = await self.decoding.also(lambda: self._drawn(call, data, cut, outcomes))
        done = monotonic()
        slowest = max(outcomes, key=lambda outcome: outcome.timings.queue_s + outcome.timings.compute_s)
        timings = {
            "decode": decode_s,
            "queue": slowest.timings.queue_s,
            "compute": slowest.timings.compute_s,
            "render": done - began,
            "total": done - call.arrived,
        }
        met = self.met(call, slowest, done - call.arrived)
        served = Served(call.id, call.card, outcomes, call.pinned, met, timings)
        if call.options.picture:
            return Response(drawn.overlay or drawn.mask, headers=served.headers(), media_type="image/png")
        return segmentation(served, drawn)

    async def _decode(self, call: Call[Asked], data: bytes) -> tuple[Cut, float]:
        """The picture in windows, and the seconds it took to make them."""
        card, spec = call.card, call.card.input
        if spec is None:
            raise UnsupportedMedia(f"{card.name} takes no pictures")
        side = max(card.full.image_size, call.plan.image_size if call.plan else 0)
        most = self.settings.max_pixels
        cut, seconds = await self.decoding.read(data, lambda: decode_windows(data, spec, side, most))
        self.meters[card.name].decode.observe(seconds)
        return cut, seconds

    def _drawn(self, call: Call[Asked], data: bytes, cut: Cut, outcomes: Sequence[Outcome]) -> Drawn:
        """On a thread of the pool: whatever looks at every pixel of the picture."""
        maps = [outcome.result.maps for outcome in outcomes]
        mask = assembled(cut.size, cut.windows, [found for found in maps if found is not None])
        over = None
        if call.options.overlay:
            whole = decode_whole(data, self.settings.max_pixels)
            over = overlay(whole, mask, "PNG" if call.options.picture else "JPEG")
        return Drawn(cut.size, png(mask), over, areas(mask))


async def together(*work: Coroutine[Any, Any, Outcome]) -> list[Outcome]:
    """All of them, or the first failure, which ends the others."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
