"""What every task's route does: the request's path in a straight line, with one outcome at its end."""

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
from typing import Any, Generic, Protocol

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from foveate.cluster import Cluster, Slot
from foveate.core.errors import (
    BadRequest,
    Draining,
    FoveateError,
    Unavailable,
    UnknownModel,
    UnsupportedMedia,
)
from foveate.core.metrics import Metrics
from foveate.core.model import ModelCard, Task
from foveate.core.outcome import Outcome
from foveate.core.request import Objective, Request
from foveate.core.settings import Settings
from foveate.gateway.body import check_type, from_json, from_multipart, media_type, read_body
from foveate.gateway.caching.features import FeatureCache
from foveate.gateway.caching.response import ResponseCache, identity
from foveate.gateway.decoding import Decoding
from foveate.gateway.limits import (
    AdmissionLimiter,
    Permit,
    SpoolBudget,
    cancel_on_disconnect,
    deadline_timeout,
)
from foveate.gateway.meter import Meter
from foveate.gateway.objective import choose_plan, default_plan, read_objective
from foveate.gateway.routes.context import NamedByClient, Options, RequestContext, RequestLog, request_id_of
from foveate.gateway.schemas.problems import problem
from foveate.gateway.schemas.response import CacheableResponse, ReplyHeaders
from foveate.gateway.spool import Medium, spool_body

log = logging.getLogger(__name__)

ANEW = re.compile("no-(cache|store)", re.IGNORECASE)
"""What `cache-control` says to be answered anew."""


class TraceSink(Protocol):
    """Where requests that are over are told, of whoever collects them."""

    def record(
        self,
        path: str,
        model: str,
        outcome: str,
        arrived: float,
        headers: Mapping[str, str],
        response: Response,
    ) -> None: ...


class TaskRoute(ABC, Generic[Options]):
    """A task's route, with what it needs: the cluster behind it, the door before it, the decode pools.

    An ASGI application of its own: the framework's per-request work, dependency solving and exit
    stacks, would cost as much as everything here does.
    """

    task: Task

    def __init__(
        self,
        cluster: Cluster,
        settings: Settings,
        metrics: Metrics,
        door: AdmissionLimiter,
        disk: SpoolBudget,
        decoding: Decoding,
        answers: ResponseCache | None = None,
        sights: FeatureCache | None = None,
        tracing: TraceSink | None = None,
    ) -> None:
        """answers: those given before; sights: what was seen of pictures before. None keeps none."""
        self.cluster, self.settings, self.metrics = cluster, settings, metrics
        self.door, self.disk, self.decoding = door, disk, decoding
        self.answers, self.sights, self.tracing = answers, sights, tracing
        self.cards = {name: card for name, card in cluster.cards().items() if card.task == self.task}
        first = next(iter(cluster.cards()), None)  # to the others its plan would mean nothing
        self.defaults = {
            name: default_plan(card, settings) if name == first else None for name, card in self.cards.items()
        }
        # What answers rest on, whichever of these models gives them.
        self._asked = identity(self.task, self.cards.values())
        if not all(card.weights for card in self.cards.values()):
            self.answers = None
        self.meters = {name: Meter(metrics, card) for name, card in self.cards.items()}

    @property
    def path(self) -> str:
        return f"/{self.task}"

    @abstractmethod
    def options(self, http: HttpRequest, headers: Mapping[str, str], card: ModelCard) -> Options:
        """What the query and the headers ask of this task. Raises BadRequest."""

    @abstractmethod
    async def work(self, call: RequestContext[Options], data: Medium, encoded: bool) -> CacheableResponse:
        """The answer to the media in `data`; `encoded`: it came as JSON, and may be taken as it is by a model
        that decodes nothing. Tells where it will run of it before anything is decoded."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        arrived = monotonic()
        http = HttpRequest(scope, receive)
        response = await self.respond(http, arrived)
        await response(scope, receive, send)

    async def respond(self, http: HttpRequest, arrived: float) -> Response:
        """Answer or problem; either way exactly one outcome is counted."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in http.scope["headers"]}
        request_id = request_id_of(headers.get("x-request-id", ""))
        outcome, trail = "failed", RequestLog()
        try:
            kind = media_type(headers.get("content-type", ""))
            card = self._card(http.query_params.get("model"), kind.startswith("video/"))
            trail.model = card.name
            trail.objective = read_objective(headers, arrived, self.settings, self.path)
            response = await self._answer(http, headers, request_id, card, trail, arrived)
            outcome = "ok"
        except FoveateError as error:
            outcome = error.outcome
            response = problem(error, request_id)
            self._note(error, trail)
        except asyncio.CancelledError:
            # At the end of a drain the server cancels what is left; that deserves an answer too.
            task = asyncio.current_task()
            if not self.cluster.draining or task is None:
                outcome = "cancelled"
                raise
            task.uncancel()
            leaving = Draining("the server shut down before the request was complete")
            outcome, response = leaving.outcome, problem(leaving, request_id)
            self._note(leaving, trail)
        except Exception:
            log.exception("request %s failed", request_id)
            response = problem(FoveateError("the server failed on this request"), request_id)
        finally:
            self.metrics.requests.labels(trail.model, self.task, outcome).inc()
        if self.tracing is not None:
            self.tracing.record(self.path, trail.model, outcome, arrived, headers, response)
        return response

    def _note(self, error: FoveateError, trail: RequestLog) -> None:
        """Count broken promises and refusals; log what is the server's own fault."""
        model = trail.model
        if trail.objective.deadline is not None and error.outcome in ("refused", "expired", "failed"):
            self.metrics.slo.labels(model, "false").inc()
        if isinstance(error, Unavailable):
            self.metrics.refused.labels(model, error.reason).inc()
        elif error.status == 500:
            log.error("inference failed", exc_info=error)

    def _card(self, name: str | None, filmed: bool) -> ModelCard:
        """The model that is named, or that takes clips in its name; else the first that takes what comes."""
        if not self.cards:
            raise UnknownModel(f"no model here can {self.task}; GET /models tells what there is")
        if name is not None and name not in self.cards:
            raise UnknownModel(f"no model {name[:60]!r} here; there are {', '.join(self.cards)}")
        if name is None:
            return self._first(filmed) or next(iter(self.cards.values()))
        card = self.cards[name]
        return self.cards.get(card.clip_model, card) if filmed else card

    def _first(self, filmed: bool) -> ModelCard | None:
        """The first model that takes clips, or pictures."""
        return next((card for card in self.cards.values() if bool(card.frames) == filmed), None)

    def for_medium(self, call: RequestContext[Options], filmed: bool) -> RequestContext[Options]:
        """The same call to a model that takes what came: a clip, or a picture. Raises UnsupportedMedia."""
        if bool(call.card.frames) == filmed:
            return call
        card = self.cards.get(call.card.clip_model) if filmed else None
        if card is None and call.named.model is None:
            card = self._first(filmed)
        if card is None:
            takes = "clips" if call.card.frames else "pictures"
            raise UnsupportedMedia(
                f"{call.card.name} takes {takes}, and this is {'a clip' if filmed else 'none'}"
            )
        call.trail.model = card.name
        plan = choose_plan(card, self.defaults[card.name], call.named.plan, call.objective.min_quality)
        call = replace(call, card=card, plan=plan)
        if call.trail.slot is not None:  # with the other model
            call.trail.slot = self.reserve_slot(call)
        return call

    async def _answer(
        self,
        http: HttpRequest,
        headers: Mapping[str, str],
        request_id: str,
        card: ModelCard,
        trail: RequestLog,
        arrived: float,
    ) -> Response:
        """Door, plan, body, and then the task's own work."""
        with self.door.enter() as visit:
            if self.cluster.draining:
                raise Draining("the server is shutting down; send the request to another one")
            objective, named = (
                trail.objective,
                NamedByClient(http.query_params.get("model"), headers.get("x-plan")),
            )
            plan = choose_plan(card, self.defaults[card.name], named.plan, objective.min_quality)
            options = self.options(http, headers, card)
            kind = media_type(headers.get("content-type", ""))
            anew = "cache-control" in headers and bool(ANEW.search(headers["cache-control"]))
            answers = None if anew else self.answers
            call = RequestContext(request_id, card, objective, plan, named, options, arrived, trail, anew)
            # The caches come first; the body of a video is not read before the request is admitted.
            if kind.startswith("video/") or (answers is None and (anew or self.sights is None)):
                self.reserve(call)
            async with self._body(http, headers, kind, visit, objective) as data:

                async def work() -> CacheableResponse:
                    return await self.work(call, data, kind == "application/json")

                with cancel_on_disconnect(http):
                    if answers is None:
                        return await work()
                    told = repr((self._asked, card.name, named, options, str(plan), kind, objective.tenant))
                    key = await self.decoding.digest(told, data)
                    return await answers.of(key, objective, work, partial(self._repeated, call))

    def _repeated(self, call: RequestContext[Options], quality: float | None) -> ReplyHeaders:
        """An answer of that quality is there already: it is counted."""
        total_s = monotonic() - call.arrived
        met = call.kept(total_s)
        self.meters[call.card.name].repeated(quality, total_s, met)
        return ReplyHeaders(call.id, met, {"total": total_s})

    def reserve(self, call: RequestContext[Options]) -> Slot:
        """The request's one reservation, made when it is known that a model has to run. Raises TooLate."""
        if call.trail.slot is None:
            call.trail.slot = self.reserve_slot(call)
        return call.trail.slot

    def reserve_slot(self, call: RequestContext[Options]) -> Slot:
        """Reserve with the model that the request will run on. Raises TooLate, before anything is decoded."""
        ready_in_s = self.decoding.wait_s(call.card)
        return self.cluster.reserve(call.card.name, self.promised(call), call.plan, ready_in_s)

    @asynccontextmanager
    async def _body(
        self, http: HttpRequest, headers: Mapping[str, str], kind: str, visit: Permit, objective: Objective
    ) -> AsyncIterator[Medium]:
        """The bytes of the medium, or of the JSON that holds it; a large clip's lie in a file meanwhile."""
        check_type(kind)
        announced, filmed = headers.get("content-length", "0"), kind.startswith("video/")
        timeout_s = self.settings.video_body_timeout_s if filmed else self.settings.body_timeout_s
        async with AsyncExitStack() as stack:
            body: Medium
            async with deadline_timeout(objective.deadline, timeout_s):
                if filmed:
                    spooled = spool_body(http, announced, visit, self.disk)
                    body = await stack.enter_async_context(spooled)
                else:
                    body = await read_body(http, announced, visit)
            if kind == "multipart/form-data" and isinstance(body, bytes):
                body = await from_multipart(headers["content-type"], body)
            if not body:
                raise BadRequest("the body is empty; send a picture or a clip")
            yield body

    async def plain(self, data: Medium, encoded: bool) -> Medium:
        """The medium itself, out of the JSON that it came in."""
        if not encoded or isinstance(data, Path):
            return data
        return await self.decoding.also(lambda: from_json(data))

    async def submit(self, call: RequestContext[Options], media: Any, **more: bool) -> Outcome:
        """Run one medium under the call's plan, or under the policy's."""
        size = getattr(media, "nbytes", None)
        request = Request(
            call.id, call.card.name, media, len(media) if size is None else size,
            task=self.task, objective=self.promised(call), plan=call.plan, **more,
        )  # fmt: skip
        return await self.reserve(call).submit(request)

    def promised(self, call: RequestContext[Options]) -> Objective:
        """What the engine has to keep so that the answer is drawn in time; at least half of the time left."""
        objective = call.objective
        if objective.deadline is None:
            return objective
        half_s = max(0.0, objective.deadline - monotonic()) / 2
        return replace(objective, deadline=objective.deadline - min(half_s, self.drawing_s(call.card)))

    def drawing_s(self, card: ModelCard) -> float:
        """Seconds that are needed once the model has answered."""
        return 0.0

    def met(self, call: RequestContext[Options], outcome: Outcome, total_s: float) -> bool | None:
        """Count an answer. Whether its deadline was kept; None where it set none."""
        met = call.kept(total_s)
        self.meters[call.card.name].answered(outcome, total_s, met)
        return met
