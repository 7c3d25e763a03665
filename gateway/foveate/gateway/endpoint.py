"""What every task's route does: the request's path in a straight line, with one outcome at its end."""

import asyncio
import logging
import random
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Any, Generic, TypeVar

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
from foveate.core.model import ModelCard, Task
from foveate.core.outcome import Outcome
from foveate.core.plan import Plan
from foveate.core.request import Objective, Request
from foveate.core.settings import Settings
from foveate.gateway.body import check_type, from_json, from_multipart, media_type, read_body
from foveate.gateway.decoding import Decoding
from foveate.gateway.door import Door, Visit
from foveate.gateway.gone import unless_gone
from foveate.gateway.objective import choose_plan, default_plan, quality_of, read_objective
from foveate.gateway.problems import problem

log = logging.getLogger(__name__)

Options = TypeVar("Options")


@dataclass(frozen=True, slots=True)
class Call(Generic[Options]):
    """A request whose head has been understood."""

    id: str
    card: ModelCard
    objective: Objective
    plan: Plan | None
    pinned: bool
    """The client chose the plan."""
    options: Options
    """What it asks of this task."""
    arrived: float


class Endpoint(ABC, Generic[Options]):
    """A task's route, with what it needs: the cluster behind it, the door before it, the decode pools.

    An ASGI application of its own: the framework's per-request work, dependency solving and exit
    stacks, would cost as much as everything here does.
    """

    task: Task

    def __init__(
        self, cluster: Cluster, settings: Settings, metrics: Metrics, door: Door, decoding: Decoding
    ) -> None:
        self.cluster, self.settings, self.metrics = cluster, settings, metrics
        self.door, self.decoding = door, decoding
        self.cards = {name: card for name, card in cluster.cards().items() if card.task == self.task}
        self.defaults = {name: default_plan(card, settings) for name, card in self.cards.items()}
        self.meters = {name: Meter(metrics, card) for name, card in self.cards.items()}

    @property
    def path(self) -> str:
        return f"/{self.task}"

    @abstractmethod
    def options(self, http: HttpRequest, headers: Mapping[str, str], card: ModelCard) -> Options:
        """What the query and the headers ask of this task. Raises BadRequest."""

    @abstractmethod
    async def work(self, call: Call[Options], data: bytes, encoded: bool) -> Response:
        """The answer to the media in `data`; `encoded`: it came as JSON, and may be taken as it is by a model
        that decodes nothing."""

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
            objective = read_objective(headers, arrived, self.settings, self.path)
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
            self.metrics.requests.labels(model, self.task, outcome).inc()
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
        if not self.cards:
            raise UnknownModel(f"no model here can {self.task}; GET /models tells what there is")
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
        """Door, plan, body, and then the task's own work."""
        with self.door.enter() as visit:
            if self.cluster.draining:
                raise Draining("the server is shutting down; send the request to another one")
            pinned = headers.get("x-plan")
            plan = choose_plan(card, self.defaults[card.name], pinned, objective.min_quality)
            options = self.options(http, headers, card)
            call = Call(request_id, card, objective, plan, pinned is not None, options, arrived)
            self.cluster.expect(card.name, objective, plan, self.cluster.host.wait_s)
            kind = media_type(headers.get("content-type", ""))
            data = await self._body(http, headers, kind, visit, objective)
            with unless_gone(http):
                return await self.work(call, data, kind == "application/json")

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

    async def plain(self, data: bytes, encoded: bool) -> bytes:
        """The medium itself, out of the JSON that it came in."""
        return await self.decoding.also(lambda: from_json(data)) if encoded else data

    async def submit(self, call: Call[Options], media: Any, **more: bool) -> Outcome:
        """Run one medium under the call's plan, or under the policy's."""
        size = getattr(media, "nbytes", None)
        request = Request(
            call.id, call.card.name, media, len(media) if size is None else size,
            task=self.task, objective=call.objective, plan=call.plan, **more,
        )  # fmt: skip
        return await self.cluster.submit(request)

    def met(self, call: Call[Options], outcome: Outcome, total_s: float) -> bool | None:
        """Count an answer. Whether its deadline was kept; None where it set none."""
        deadline = call.objective.deadline
        met = None if deadline is None else call.arrived + total_s <= deadline
        self.meters[call.card.name].answered(outcome, total_s, met)
        return met


class Meter:
    """The metrics of one model's answers, label children resolved once."""

    def __init__(self, metrics: Metrics, card: ModelCard) -> None:
        self.card, self._rung = card, metrics.rung
        self.decode = metrics.stage.labels(card.name, "decode")
        self._duration = metrics.duration.labels(card.name, card.task)
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
