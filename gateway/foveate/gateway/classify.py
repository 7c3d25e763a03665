"""POST /classify: one picture in, its classes and what they cost out."""

import asyncio
import logging
import os
import random
import sys
import threading
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from time import monotonic, thread_time
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from foveate.cluster import Cluster
from foveate.core.errors import (
    BadRequest,
    BodyTooSlow,
    DeadlineExceeded,
    Draining,
    FoveateError,
    Unavailable,
    UnknownModel,
)
from foveate.core.metrics import Metrics
from foveate.core.model import InputSpec, ModelCard
from foveate.core.outcome import Outcome
from foveate.core.plan import Plan
from foveate.core.request import Objective, Request
from foveate.core.settings import Settings
from foveate.gateway.body import check_type, from_json, from_multipart, media_type, read_body
from foveate.gateway.door import Door, Visit
from foveate.gateway.gone import unless_gone
from foveate.gateway.lanes import is_large
from foveate.gateway.media import decode_image
from foveate.gateway.objective import choose_plan, default_plan, quality_of, read_objective
from foveate.gateway.problems import problem
from foveate.gateway.wire import classification

log = logging.getLogger(__name__)

NICE = 10
"""Of decode threads: on a core that both want, a forward then gets nine times as much."""


class Classifier:
    """The route, with what it needs: the cluster behind it, the door before it, the decode pools.

    An ASGI application of its own: the framework's per-request work, dependency solving and exit
    stacks, would cost as much as everything here does.
    """

    def __init__(self, cluster: Cluster, settings: Settings, metrics: Metrics) -> None:
        self.cluster, self.settings, self.metrics = cluster, settings, metrics
        self.cards = cluster.cards()
        self.defaults = {name: default_plan(card, settings) for name, card in self.cards.items()}
        self.door = Door(settings.in_flight_items, settings.in_flight_bytes, settings.max_body_bytes)
        self.pool = ThreadPoolExecutor(settings.decode_threads, "decode", initializer=give_way)
        self.slow_pool = ThreadPoolExecutor(1, "decode-large", initializer=give_way)
        self.meters = {name: Meter(metrics, card) for name, card in self.cards.items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        arrived = monotonic()
        http = HttpRequest(scope, receive)
        response = await self.respond(http, arrived)
        await response(scope, receive, send)

    async def respond(self, http: HttpRequest, arrived: float) -> Response:
        """Answer or problem; either way exactly one outcome is counted."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in http.scope["headers"]}
        request_id = request_id_of(headers.get("x-request-id", ""))
        model, outcome, objective = "unknown", "failed", Objective()
        try:
            card = self._card(http.query_params.get("model"))
            model = card.name
            objective = read_objective(headers, arrived, self.settings)
            response = await self._answer(http, headers, request_id, card, objective, arrived)
            outcome = "ok"
        except FoveateError as error:
            outcome = error.outcome
            response = problem(error, request_id)
            self._note(error, model, objective)
        except asyncio.CancelledError:
            # At the end of a drain the server cancels what is left; that deserves an answer too.
            task = asyncio.current_task()
            if not self.cluster.draining or task is None:
                outcome = "cancelled"
                raise
            task.uncancel()
            leaving = Draining("the server shut down before the request was complete")
            outcome, response = leaving.outcome, problem(leaving, request_id)
            self._note(leaving, model, objective)
        except Exception:
            log.exception("request %s failed", request_id)
            response = problem(FoveateError("the server failed on this request"), request_id)
        finally:
            self.metrics.requests.labels(model, "classify", outcome).inc()
        return response

    def _note(self, error: FoveateError, model: str, objective: Objective) -> None:
        """Count broken promises and refusals; log what is the server's own fault."""
        if objective.deadline is not None and error.outcome in ("refused", "expired", "failed"):
            self.metrics.slo.labels(model, "false").inc()
        if isinstance(error, Unavailable):
            self.metrics.refused.labels(model, error.reason).inc()
        elif error.status == 500:
            log.error("inference failed", exc_info=error)

    def _card(self, name: str | None) -> ModelCard:
        if name is None:
            return next(iter(self.cards.values()))
        if name not in self.cards:
            raise UnknownModel(f"no model {name[:60]!r} here; there are {', '.join(self.cards)}")
        return self.cards[name]

    async def _answer(
        self,
        http: HttpRequest,
        headers: Mapping[str, str],
        request_id: str,
        card: ModelCard,
        objective: Objective,
        arrived: float,
    ) -> Response:
        """Door, plan, body, decode, run, render: the request's path in a straight line."""
        with self.door.enter() as visit:
            if self.cluster.draining:
                raise Draining("the server is shutting down; send the request to another one")
            pinned = headers.get("x-plan")
            plan = choose_plan(card, self.defaults[card.name], pinned, objective.min_quality)
            top_k = read_top_k(http.query_params.get("top_k"), card)
            explain = read_explain(http.query_params.get("explain"))
            self.cluster.expect(card.name, objective, plan, self.cluster.host.wait_s)
            kind = media_type(headers.get("content-type", ""))
            body = await self._body(http, headers, kind, visit, objective)
            with unless_gone(http):
                media, decode_s = body, 0.0
                if card.input is not None or kind == "application/json":
                    async with within(objective.deadline):
                        media, decode_s = await self._decode(body, kind, card, plan)
                size = getattr(media, "nbytes", len(media))
                request = Request(
                    request_id, card.name, media, size,
                    objective=objective, plan=plan, expected=True, explain=explain,
                )  # fmt: skip
                outcome = await self.cluster.submit(request)
        total_s = monotonic() - arrived
        met = None if objective.deadline is None else arrived + total_s <= objective.deadline
        self.meters[card.name].answered(outcome, total_s, met)
        timings = {
            "decode": decode_s,
            "queue": outcome.timings.queue_s,
            "compute": outcome.timings.compute_s,
            "total": total_s,
        }
        return classification(card, request, outcome, top_k, pinned is not None, met, timings)

    async def _body(
        self, http: HttpRequest, headers: Mapping[str, str], kind: str, visit: Visit, objective: Objective
    ) -> bytes:
        """The bytes of the picture, or of the JSON that holds it."""
        check_type(kind)
        async with within(objective.deadline, self.settings.body_s):
            body = await read_body(http, headers.get("content-length", "0"), visit)
        if kind == "multipart/form-data":
            body = await from_multipart(headers["content-type"], body)
        if not body:
            raise BadRequest("the body is empty; send a picture")
        return body

    async def _decode(self, body: bytes, kind: str, card: ModelCard, plan: Plan | None) -> tuple[Any, float]:
        """Pixels for the model, made off the event loop, and the seconds it took."""
        loop = asyncio.get_running_loop()
        data = body
        if kind == "application/json":
            data = await loop.run_in_executor(self.pool, from_json, body)
        if card.input is None:
            return data, 0.0  # it wants the bytes as they are
        pool = self.slow_pool if is_large(data) else self.pool
        # One size for all who may share a batch; the model scales down to what a plan wants.
        side = max(card.full.image_size, plan.image_size if plan else 0)
        host = self.cluster.host
        with host:
            pixels, seconds, used_s = await loop.run_in_executor(
                pool, self._decode_now, data, card.input, side
            )
        if pool is self.pool:  # a large one tells nothing of the others, and waits for none of them
            host.made(seconds, used_s)
        self.meters[card.name].decode.observe(seconds)
        return pixels, seconds

    def _decode_now(self, data: bytes, spec: InputSpec, side: int) -> tuple[Any, float, float]:
        """On a thread of a pool."""
        started, used = monotonic(), thread_time()
        pixels = decode_image(data, spec, side, self.settings.max_pixels)
        return pixels, monotonic() - started, thread_time() - used

    def close(self) -> None:
        self.pool.shutdown(wait=False, cancel_futures=True)
        self.slow_pool.shutdown(wait=False, cancel_futures=True)


def give_way() -> None:
    """On a decode thread: let forwards go first where cores are short. The threads of a forward wait for one
    another at every step, so that one that has to wait for a core holds up all of them, thirtyfold at
    worst; a picture that is decoded later costs nobody else. Linux counts niceness by thread."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)


class Meter:
    """The metrics of one model's answers, label children resolved once."""

    def __init__(self, metrics: Metrics, card: ModelCard) -> None:
        self.card, self._rung = card, metrics.rung
        self.decode = metrics.stage.labels(card.name, "decode")
        self._duration = metrics.duration.labels(card.name, "classify")
        self._quality, self._degraded = metrics.quality.labels(card.name), metrics.degraded
        self._kept = metrics.kept_tokens.labels(card.name)
        self._met = metrics.slo.labels(card.name, "true")
        self._missed = metrics.slo.labels(card.name, "false")

    def answered(self, outcome: Outcome, total_s: float, met: bool | None) -> None:
        """Count one answer. Plans outside the ladder share one label, so that labels stay few."""
        rung = outcome.plan.beside(self.card.full) if self.card.rung(outcome.plan) else "other"
        self._rung.labels(self.card.name, rung).inc()
        self._duration.observe(total_s)
        self._kept.observe(outcome.result.tokens / self.card.ladder[-1].tokens)
        quality = quality_of(self.card, outcome.plan)
        if quality is not None:
            self._quality.observe(quality)
        if outcome.plan != self.card.full:
            self._degraded.labels(self.card.name, outcome.reason).inc()
        if met is not None:
            (self._met if met else self._missed).inc()


@asynccontextmanager
async def within(deadline: float | None, patience_s: float | None = None) -> AsyncIterator[None]:
    """Bound what comes before admission; after it the engine does.

    Raises DeadlineExceeded at the deadline, BodyTooSlow once `patience_s` is over before it.
    """
    left = None if deadline is None else deadline - monotonic()
    impatient = patience_s is not None and (left is None or patience_s < left)
    try:
        async with asyncio.timeout(patience_s if impatient else left):
            yield
    except TimeoutError:
        if impatient:
            raise BodyTooSlow(f"the body did not arrive within {patience_s:g} s") from None
        raise DeadlineExceeded("the deadline passed before the picture was read") from None


def request_id_of(given: str) -> str:
    """The client's own id where it is short and printable, else a new one."""
    if 0 < len(given) <= 128 and given.isascii() and given.isprintable():
        return given
    return f"{random.getrandbits(96):024x}"


def read_explain(text: str | None) -> bool:
    """Whether the answer says what was looked at."""
    if text not in (None, "true", "false"):
        raise BadRequest("explain must be true or false")
    return text == "true"


def read_top_k(text: str | None, card: ModelCard) -> int:
    """How many classes to name, 5 unless told."""
    if not card.labels:
        raise BadRequest(f"{card.name} has no classifier; it only makes features")
    if text is None:
        return min(5, len(card.labels))
    if not (text.isascii() and text.isdecimal() and len(text) <= 6 and int(text) >= 1):
        raise BadRequest("top_k must be a whole number from 1")
    return min(int(text), len(card.labels))
