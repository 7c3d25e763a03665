"""The base of all task routes: the path of a request in a straight line, with one outcome at its end."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Container, Mapping, Sequence
from dataclasses import replace
from functools import partial
from time import monotonic
from typing import ClassVar, Generic

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from foveate.core.errors import BadRequest, Draining
from foveate.core.model import ModelCard, Task, route_of
from foveate.gateway.body import holds_options, media_type
from foveate.gateway.body_formats.json_body import decode_data
from foveate.gateway.caching.response import ResponseCache, cards_identity
from foveate.gateway.limits import cancel_on_disconnect, deadline_timeout
from foveate.gateway.meter import Meter
from foveate.gateway.objective import check_headers, choose_plan, default_plan, read_objective
from foveate.gateway.routes.admission import Admission
from foveate.gateway.routes.body_reader import BodyReader, RequestBody
from foveate.gateway.routes.context import (
    ClientChoice,
    Options,
    RequestContext,
    RequestLog,
    bypasses_cache,
    read_headers,
)
from foveate.gateway.routes.model_selection import ModelSelector
from foveate.gateway.routes.options import (
    NO_VALUES,
    OptionReader,
    OptionValues,
    ReadOption,
    check_query,
    text_option,
)
from foveate.gateway.routes.request_counter import RequestCounter
from foveate.gateway.routes.services import RouteServices
from foveate.gateway.schemas.problems import problem
from foveate.gateway.schemas.response import CacheableResponse, ReplyHeaders
from foveate.gateway.spool import Medium


class TaskRoute(ABC, Generic[Options]):
    """The route of one task.

    It is an ASGI application of its own: the framework's per-request work (dependency resolution, exit
    stacks) would cost as much as everything here does.
    """

    task: Task
    own_options: ClassVar[Mapping[str, ReadOption]]
    """How the values of the task's own options are parsed, by their names."""
    list_options: ClassVar[Collection[str]] = ()
    """The own options that may be given several times, as a list."""

    def __init__(self, services: RouteServices, admission: Admission | None = None) -> None:
        """admission: None makes the default one."""
        self.services, self.settings = services, services.settings
        self.decoding = services.decoding
        self.counter = RequestCounter(services, self.task, self.path, problem)
        self.admission = admission or Admission(services.cluster, services.decoding, self.task)
        self.body_reader = BodyReader(services.settings, services.spool_budget, services.decoding)
        common = {"model": text_option("model"), "plan": text_option("plan")}
        self.option_reader = OptionReader({**common, **self.own_options}, self.list_options)
        all_cards = services.cluster.cards()
        self.models = ModelSelector(self.task, all_cards)
        self.cards = {name: card for name, card in all_cards.items() if self.answers_for(card)}
        first = next(iter(all_cards), None)  # the default plan is written for this model alone
        self.defaults = {
            name: default_plan(card, self.settings) if name == first else None
            for name, card in self.cards.items()
        }
        self.meters = {name: Meter(services.metrics, card, self.task) for name, card in self.cards.items()}
        # Without a digest of the weights, a cached answer could come from other weights.
        cacheable = all(
            card.weights for card in self.cards.values() if card.task == self.task or card.zero_shot
        )
        self.response_cache = services.response_cache if cacheable else None
        self._identity = cards_identity(self.task, self.cards.values())

    def answers_for(self, card: ModelCard) -> bool:
        """Whether the route has answers of this model."""
        return card.task == self.task

    def choose_model(
        self, name: str | None, video: bool, options: Container[str], complete: bool
    ) -> ModelCard:
        """The model that answers. name: the client's choice, None for the default. video: a clip was sent.

        options: names of the options so far. complete: the body holds no further ones. Raises BadRequest.
        """
        return self.models.by_name(name, video)

    @property
    def path(self) -> str:
        """The URL path."""
        return route_of(self.task)

    @abstractmethod
    def options(self, values: OptionValues, headers: Mapping[str, str], card: ModelCard) -> Options:
        """The task's options from the values that the request gives, and the headers. Raises BadRequest."""

    @abstractmethod
    async def work(self, context: RequestContext[Options], data: Medium) -> CacheableResponse:
        """The answer to the media in `data`. Reserves before anything is decoded. Raises FoveateError."""

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
        headers = read_headers(http.scope["headers"])
        return await self.counter.run(headers, arrived, partial(self._answer, http, headers, arrived))

    async def _answer(
        self,
        http: HttpRequest,
        headers: Mapping[str, str],
        arrived: float,
        request_id: str,
        request_log: RequestLog,
    ) -> Response:
        """Options, objective, limits, body, response cache, and then the task's own work."""
        check_headers(http.scope["headers"], headers, self.settings.tenant_header)
        kind = media_type(headers.get("content-type", ""))
        query: Sequence[tuple[str, str]] = ()
        if http.scope["query_string"]:
            check_query(http.scope["query_string"])
            query = http.query_params.multi_items()
        named, is_form = dict(query), holds_options(kind)
        card = self.choose_model(named.get("model"), kind.startswith("video/"), named, not is_form)
        request_log.model = card.name
        values = self._head_options(query, headers)
        request_log.objective = read_objective(headers, arrived, self.settings, self.path)

        def admit(card: ModelCard, values: OptionValues) -> RequestContext[Options]:
            context = self._context(headers, request_id, card, values, request_log, arrived)
            if kind.startswith("video/") or not self._may_be_cached(context):
                # Refused before decoding. Other requests are reserved after the cache look-up.
                self.admission.reserve(context)
            return context

        with self.services.limiter.admit() as permit:
            if self.services.cluster.draining:
                raise Draining("the server is shutting down; send the request to another one")
            # Requests whose body may hold no options are checked, and refused, before the body is read.
            context = None if is_form else admit(card, values)
            body = self.body_reader.open(http, headers, kind, permit, request_log.objective.deadline)
            async with body as content:
                with cancel_on_disconnect(http):
                    if context is not None:
                        return await self._answer_to(context, content)
                    values = self.option_reader.read(content.fields, values)
                    if content.url is None:
                        card = self.choose_model(values.get("model"), content.is_video, values, True)
                        return await self._answer_to(admit(card, values), content)
                    deadline = request_log.objective.deadline
                    async with self.services.url_fetcher.open(content.url, permit, deadline) as media:
                        content = RequestBody(media)
                        card = self.choose_model(values.get("model"), content.is_video, values, True)
                        return await self._answer_to(admit(card, values), content)

    async def _answer_to(self, context: RequestContext[Options], content: RequestBody) -> Response:
        """The answer from the response cache, or the task's own work."""
        if context.bypass_cache or self.response_cache is None:
            return await self._computed(context, content)
        return await self._cached_or_computed(self.response_cache, context, content)

    def _head_options(self, query: Sequence[tuple[str, str]], headers: Mapping[str, str]) -> OptionValues:
        """The options in the query, with the plan in the header `x-plan`. Raises BadRequest."""
        values = self.option_reader.read(query) if query else NO_VALUES
        if "x-plan" in headers:
            values = self.option_reader.read([("plan", headers["x-plan"])], values)
        return values

    def _context(
        self,
        headers: Mapping[str, str],
        request_id: str,
        card: ModelCard,
        values: OptionValues,
        request_log: RequestLog,
        arrived: float,
    ) -> RequestContext[Options]:
        """Read the plan, the options and `cache-control`. Raises BadPlan, BadRequest."""
        request_log.model = card.name
        objective = request_log.objective
        choice = ClientChoice(values.get("model"), values.get("plan"))
        plan = choose_plan(card, self.defaults[card.name], choice.plan, objective.min_quality)
        options = self.options(values, headers, card)
        bypass = bypasses_cache(headers)
        return RequestContext(
            request_id, card, objective, plan, choice, options, arrived, request_log, bypass
        )

    def _may_be_cached(self, context: RequestContext[Options]) -> bool:
        """Whether the response cache or the feature cache may answer the request."""
        if context.bypass_cache:
            return False
        return self.response_cache is not None or self.services.feature_cache is not None

    async def _cached_or_computed(
        self, response_cache: ResponseCache, context: RequestContext[Options], content: RequestBody
    ) -> Response:
        """The response to the same request from the cache, else the task's own work."""
        identity = (
            self._identity, context.card.name, context.choice, context.options, str(context.plan),
            content.encoded, context.objective.tenant,
        )  # fmt: skip
        key = await self.decoding.digest(repr(identity), content.media)
        return await response_cache.get_or_compute(
            key,
            context.objective,
            partial(self._computed, context, content),
            partial(self._count_cached, context),
        )

    async def _computed(self, context: RequestContext[Options], content: RequestBody) -> CacheableResponse:
        """The task's own work on the media, which are decoded first if they are in base64."""
        media = content.media
        if content.encoded and isinstance(media, bytes):
            async with deadline_timeout(context.objective.deadline):
                media = await self.decoding.run(partial(decode_data, media))
            if not media:
                raise BadRequest("'data' is empty; send an image or a clip in base64")
        return await self.work(context, media)

    def _count_cached(self, context: RequestContext[Options], quality: float | None) -> ReplyHeaders:
        """Count an answer of this quality that the cache gave, and return the headers of its response."""
        total_s = monotonic() - context.arrived
        met = context.deadline_met(total_s)
        self.meters[context.card.name].record_cached(quality, total_s, met)
        return ReplyHeaders(context.id, met, {"total": total_s})

    def for_medium(self, context: RequestContext[Options], video: bool) -> RequestContext[Options]:
        """The same request, to a model that takes this kind of media. Raises UnsupportedMedia."""
        choice, old = context.choice, context.card
        card = self.models.for_medium(old, video, named=choice.model is not None)
        if card is old:
            return context
        context.log.model = card.name
        plan = choose_plan(card, self.defaults[card.name], choice.plan, context.objective.min_quality)
        context = replace(context, card=card, plan=plan)
        self.admission.move(context)
        return context
