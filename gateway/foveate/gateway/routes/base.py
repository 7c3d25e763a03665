"""The base of all task routes: the path of a request in a straight line, with one outcome at its end."""

import asyncio
import logging
import re
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Generic

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from foveate.core.errors import (
    BadRequest,
    Draining,
    FoveateError,
    Unavailable,
    UnknownModel,
    UnsupportedMedia,
)
from foveate.core.model import ModelCard, Task
from foveate.core.outcome import Outcome
from foveate.core.request import Objective
from foveate.gateway.body import check_type, from_json, from_multipart, media_type, read_body
from foveate.gateway.caching.response import cards_identity
from foveate.gateway.limits import Permit, cancel_on_disconnect, deadline_timeout
from foveate.gateway.meter import Meter
from foveate.gateway.objective import choose_plan, default_plan, read_objective
from foveate.gateway.routes.admission import Admission
from foveate.gateway.routes.context import ClientChoice, Options, RequestContext, RequestLog, request_id_of
from foveate.gateway.routes.services import RouteServices
from foveate.gateway.schemas.problems import problem
from foveate.gateway.schemas.response import CacheableResponse, ReplyHeaders
from foveate.gateway.spool import Medium, spool_body

log = logging.getLogger(__name__)

NO_CACHE = re.compile("no-(cache|store)", re.IGNORECASE)
"""Values of `cache-control` that bypass the caches."""


class TaskRoute(ABC, Generic[Options]):
    """The route of one task.

    It is an ASGI application of its own: the framework's per-request work (dependency resolution, exit
    stacks) would cost as much as everything here does.
    """

    task: Task

    def __init__(self, services: RouteServices, admission: Admission | None = None) -> None:
        """admission: None makes the default one."""
        self.services, self.settings = services, services.settings
        self.decoding = services.decoding
        self.admission = admission or Admission(services.cluster, services.decoding, self.task)
        all_cards = services.cluster.cards()
        self.cards = {name: card for name, card in all_cards.items() if card.task == self.task}
        first = next(iter(all_cards), None)  # the default plan is written for this model alone
        self.defaults = {
            name: default_plan(card, self.settings) if name == first else None
            for name, card in self.cards.items()
        }
        self.meters = {name: Meter(services.metrics, card) for name, card in self.cards.items()}
        # Without a digest of the weights, a cached answer could come from other weights.
        cacheable = all(card.weights for card in self.cards.values())
        self.response_cache = services.response_cache if cacheable else None
        self._identity = cards_identity(self.task, self.cards.values())

    @property
    def path(self) -> str:
        """The URL path."""
        return f"/{self.task}"

    @abstractmethod
    def options(self, http: HttpRequest, headers: Mapping[str, str], card: ModelCard) -> Options:
        """The task's options from the query and the headers. Raises BadRequest."""

    @abstractmethod
    async def work(self, context: RequestContext[Options], data: Medium, encoded: bool) -> CacheableResponse:
        """The answer to the media in `data`. Reserves before anything is decoded. Raises FoveateError.

        encoded: the body is JSON; a model that takes undecoded bytes gets it as it is.
        """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI)."""
        arrived = monotonic()
        http = HttpRequest(scope, receive)
        response = await self.respond(http, arrived)
        await response(scope, receive, send)

    async def respond(self, http: HttpRequest, arrived: float) -> Response:
        """The answer, or the problem details of its failure. Counts exactly one outcome.

        arrived: monotonic clock seconds.
        """
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in http.scope["headers"]}
        request_id = request_id_of(headers.get("x-request-id", ""))
        outcome, request_log = "failed", RequestLog()
        try:
            kind = media_type(headers.get("content-type", ""))
            card = self._card(http.query_params.get("model"), kind.startswith("video/"))
            request_log.model = card.name
            request_log.objective = read_objective(headers, arrived, self.settings, self.path)
            response = await self._answer(http, headers, request_id, card, request_log, arrived)
            outcome = "ok"
        except FoveateError as error:
            outcome = error.outcome
            response = problem(error, request_id)
            self._count_failure(error, request_log)
        except asyncio.CancelledError:
            # At the end of a drain the server cancels the remaining requests; they get an answer too.
            task = asyncio.current_task()
            if not self.services.cluster.draining or task is None:
                outcome = "cancelled"
                raise
            task.uncancel()
            draining = Draining("the server shut down before the request was complete")
            outcome, response = draining.outcome, problem(draining, request_id)
            self._count_failure(draining, request_log)
        except Exception:
            log.exception("request %s failed", request_id)
            response = problem(FoveateError("the server failed on this request"), request_id)
        finally:
            self.services.metrics.requests.labels(request_log.model, self.task, outcome).inc()
        if self.services.tracing is not None:
            self.services.tracing.record(self.path, request_log.model, outcome, arrived, headers, response)
        return response

    def _count_failure(self, error: FoveateError, request_log: RequestLog) -> None:
        """Count missed deadlines and refusals; log what is the server's own fault."""
        model, metrics = request_log.model, self.services.metrics
        if request_log.objective.deadline is not None and error.outcome in ("refused", "expired", "failed"):
            metrics.slo.labels(model, "false").inc()
        if isinstance(error, Unavailable):
            metrics.refused.labels(model, error.reason).inc()
        elif error.status == 500:
            log.error("inference failed", exc_info=error)

    def _card(self, name: str | None, video: bool) -> ModelCard:
        """The named model, or its companion for video; else the first that takes this kind of media.

        Raises UnknownModel.
        """
        if not self.cards:
            raise UnknownModel(f"no model here can {self.task}; GET /models lists the models")
        if name is not None and name not in self.cards:
            raise UnknownModel(f"no model {name[:60]!r} here; there are {', '.join(self.cards)}")
        if name is None:
            return self._first(video) or next(iter(self.cards.values()))
        card = self.cards[name]
        return self.cards.get(card.clip_model, card) if video else card

    def _first(self, video: bool) -> ModelCard | None:
        """The first model that takes video, or images."""
        return next((card for card in self.cards.values() if bool(card.frames) == video), None)

    def for_medium(self, context: RequestContext[Options], video: bool) -> RequestContext[Options]:
        """The same request, to a model that takes this kind of media. Raises UnsupportedMedia."""
        if bool(context.card.frames) == video:
            return context
        card = self.cards.get(context.card.clip_model) if video else None
        if card is None and context.choice.model is None:
            card = self._first(video)
        if card is None:
            takes, sent = ("clips", "a picture") if context.card.frames else ("pictures", "a clip")
            raise UnsupportedMedia(f"{context.card.name} takes {takes}, and the request has {sent}")
        context.log.model = card.name
        plan = choose_plan(card, self.defaults[card.name], context.choice.plan, context.objective.min_quality)
        context = replace(context, card=card, plan=plan)
        self.admission.move(context)
        return context

    async def _answer(
        self,
        http: HttpRequest,
        headers: Mapping[str, str],
        request_id: str,
        card: ModelCard,
        request_log: RequestLog,
        arrived: float,
    ) -> Response:
        """Limits, plan, body, response cache, and then the task's own work."""
        with self.services.limiter.admit() as permit:
            if self.services.cluster.draining:
                raise Draining("the server is shutting down; send the request to another one")
            objective = request_log.objective
            choice = ClientChoice(http.query_params.get("model"), headers.get("x-plan"))
            plan = choose_plan(card, self.defaults[card.name], choice.plan, objective.min_quality)
            options = self.options(http, headers, card)
            kind = media_type(headers.get("content-type", ""))
            bypass = "cache-control" in headers and bool(NO_CACHE.search(headers["cache-control"]))
            response_cache = None if bypass else self.response_cache
            context = RequestContext(
                request_id, card, objective, plan, choice, options, arrived, request_log, bypass
            )
            # A request that a cache may answer is reserved after the look-up. A video is reserved before its
            # body is read: the body may be large.
            uncached = response_cache is None and (bypass or self.services.feature_cache is None)
            if kind.startswith("video/") or uncached:
                self.admission.reserve(context)
            async with self._body(http, headers, kind, permit, objective) as data:

                async def work() -> CacheableResponse:
                    return await self.work(context, data, kind == "application/json")

                with cancel_on_disconnect(http):
                    if response_cache is None:
                        return await work()
                    identity = repr(
                        (self._identity, card.name, choice, options, str(plan), kind, objective.tenant)
                    )
                    key = await self.decoding.digest(identity, data)
                    return await response_cache.get_or_compute(
                        key, objective, work, partial(self._count_cached, context)
                    )

    def _count_cached(self, context: RequestContext[Options], quality: float | None) -> ReplyHeaders:
        """Count an answer of this quality that the cache gave, and return the headers of its response."""
        total_s = monotonic() - context.arrived
        met = context.deadline_met(total_s)
        self.meters[context.card.name].record_cached(quality, total_s, met)
        return ReplyHeaders(context.id, met, {"total": total_s})

    @asynccontextmanager
    async def _body(
        self, http: HttpRequest, headers: Mapping[str, str], kind: str, permit: Permit, objective: Objective
    ) -> AsyncIterator[Medium]:
        """The bytes of the media, or of the JSON that holds them; a large video stays in a file meanwhile."""
        check_type(kind)
        length, video = headers.get("content-length", "0"), kind.startswith("video/")
        timeout_s = self.settings.video_body_timeout_s if video else self.settings.body_timeout_s
        async with AsyncExitStack() as stack:
            body: Medium
            async with deadline_timeout(objective.deadline, timeout_s):
                if video:
                    spooled = spool_body(http, length, permit, self.services.spool_budget)
                    body = await stack.enter_async_context(spooled)
                else:
                    body = await read_body(http, length, permit)
            if kind == "multipart/form-data" and isinstance(body, bytes):
                body = await from_multipart(headers["content-type"], body)
            if not body:
                raise BadRequest("the body is empty; send a picture or a clip")
            yield body

    async def media_bytes(self, data: Medium, encoded: bool) -> Medium:
        """The media, taken out of the JSON body if there is one. Raises BadRequest."""
        if not encoded or isinstance(data, Path):
            return data
        return await self.decoding.run(lambda: from_json(data))

    def count_answer(self, context: RequestContext[Options], outcome: Outcome, total_s: float) -> bool | None:
        """Count an answer. Returns whether its deadline was met; None without a deadline."""
        met = context.deadline_met(total_s)
        self.meters[context.card.name].record(outcome, total_s, met)
        return met
