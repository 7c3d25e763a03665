"""POST /v1/chat/completions: a chat about pictures in, its answer out, whole or as a stream."""

from collections.abc import Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from time import monotonic

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from foveate.core.chat import ChatCall, ChatEnded, ChatPicture, ChatStarted
from foveate.core.errors import BadPlan, BadRequest, Draining
from foveate.core.model import Task, route_of
from foveate.core.request import Objective
from foveate.gateway.chat.objective import (
    HEADERS,
    read_min_quality_worst,
    read_ttft_ms,
)
from foveate.gateway.chat.request import ChatBody, parse_chat
from foveate.gateway.chat.response import ChatAnswerState, ChatResponse
from foveate.gateway.chat.stream import ChatStream, EventStream
from foveate.gateway.decoding import SMALL_BYTES
from foveate.gateway.limits import cancel_on_disconnect, deadline_timeout
from foveate.gateway.meter import Meter
from foveate.gateway.objective import check_headers, default_plan, read_objective
from foveate.gateway.routes.admission import Admission
from foveate.gateway.routes.body_reader import BodyReader
from foveate.gateway.routes.chat_pictures import ChatPictures
from foveate.gateway.routes.chat_plan import choose_chat_plan
from foveate.gateway.routes.context import (
    ClientChoice,
    RequestContext,
    RequestLog,
    bypasses_cache,
    read_headers,
)
from foveate.gateway.routes.image_input import ImageInput
from foveate.gateway.routes.model_selection import ModelSelector
from foveate.gateway.routes.request_counter import RequestCounter
from foveate.gateway.routes.services import RouteServices
from foveate.gateway.schemas.openai_errors import openai_error
from foveate.models.vlm.schema_check import check_schema_apart

NOT_DECODED = ChatPicture(b"", None, 0)
"""Stands for a picture until it is decoded."""


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """What a request says about its answer, beside how it is generated."""

    stream: bool
    include_usage: bool
    logprobs: bool
    first_token_by: float | None
    """Deadline of the first token, in seconds of the monotonic clock."""
    min_quality_worst: float


Context = RequestContext[ChatOptions]


class ChatRoute:
    """The route of task `chat`. Like `TaskRoute`, it is an ASGI application of its own."""

    task: Task = "chat"

    def __init__(self, services: RouteServices) -> None:
        self.services, self.settings = services, services.settings
        self.decoding, self.path = services.decoding, route_of(self.task)
        self.counter = RequestCounter(services, self.task, self.path, openai_error)
        self.admission = Admission(services.cluster, services.decoding, self.task)
        self.body_reader = BodyReader(services.settings, services.spool_budget, services.decoding)
        all_cards = services.cluster.cards()
        self.models = ModelSelector(self.task, all_cards)
        first = next(iter(all_cards), None)  # the default plan is written for this model alone
        self.defaults = {
            name: default_plan(card, self.settings) if name == first else None
            for name, card in self.models.cards.items()
        }
        self.meters = {
            name: Meter(services.metrics, card, self.task) for name, card in self.models.cards.items()
        }
        images = ImageInput(self.decoding, self.settings, self.meters)
        self.pictures = ChatPictures(self.decoding, images, services.url_fetcher)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI)."""
        arrived = monotonic()
        http, events = HttpRequest(scope, receive), EventStream(send)
        headers = read_headers(scope["headers"])
        response = await self.counter.run(
            headers, arrived, partial(self._answer, http, headers, arrived, events)
        )
        if not events.started:
            await response(scope, receive, send)
        elif not events.ended:
            await events.fail(bytes(response.body))

    async def _answer(
        self,
        http: HttpRequest,
        headers: Mapping[str, str],
        arrived: float,
        events: EventStream,
        request_id: str,
        request_log: RequestLog,
    ) -> Response:
        """Limits, body, objective, reservation, pictures, and then the answer."""
        check_headers(http.scope["headers"], headers, self.settings.tenant_header, HEADERS)
        if http.scope["query_string"]:
            raise BadRequest("this route takes no query; all options stand in the JSON body")
        # It bounds the time for the body, which may hold another objective.
        request_log.objective = read_objective(headers, arrived, self.settings, self.path)
        with self.services.limiter.admit() as permit:
            if self.services.cluster.draining:
                raise Draining("the server is shutting down; send the request to another one")
            deadline = request_log.objective.deadline
            text = await self.body_reader.read_json_text(http, headers, permit, deadline)
            with cancel_on_disconnect(http):
                body, text = await self._parse(text, deadline), b""
                context = self._context(headers, request_id, request_log, body, arrived)
                await self._check_schema(context, body)
                call = self._call(context, body)
                with naming_messages(), body.objective.naming_fields():
                    self.admission.reserve(context, call)
                started = monotonic()
                pictures = await self.pictures.load(context, body.messages.pictures, permit)
                call, decode_s = replace(call, pictures=pictures), monotonic() - started
                requested = body.objective
                del body  # it holds the encoded pictures, which are decoded now
                permit.release()
                with requested.naming_fields():  # workers elsewhere check the plan only now
                    return await self._generate(context, call, decode_s, events)

    async def _parse(self, text: bytes, deadline: float | None) -> ChatBody:
        if len(text) <= SMALL_BYTES:
            return parse_chat(text, self.settings)
        async with deadline_timeout(deadline):
            return await self.decoding.run(partial(parse_chat, text, self.settings))

    def _context(
        self,
        headers: Mapping[str, str],
        request_id: str,
        request_log: RequestLog,
        body: ChatBody,
        arrived: float,
    ) -> Context:
        """The model, the objective and the plan. Raises BadRequest."""
        card = self.models.by_name(body.model, False)
        request_log.model = card.name
        merged = body.objective.merged(headers)
        with body.objective.naming_fields():
            objective, options = self._objective(merged, body, arrived)
            request_log.objective, request_log.first_token_by = objective, options.first_token_by
            plan = choose_chat_plan(
                card, self.defaults[card.name], merged.get("x-plan"), body.messages.detail,
                (objective.min_quality, options.min_quality_worst), request_log.has_deadline,
            )  # fmt: skip
        choice = ClientChoice(body.model, merged.get("x-plan"))
        bypass = bypasses_cache(headers)
        return RequestContext(
            request_id, card, objective, plan, choice, options, arrived, request_log, bypass
        )

    def _objective(
        self, headers: Mapping[str, str], body: ChatBody, arrived: float
    ) -> tuple[Objective, ChatOptions]:
        objective = read_objective(headers, arrived, self.settings, self.path)
        ttft_ms = read_ttft_ms(headers)
        return objective, ChatOptions(
            body.stream,
            body.include_usage,
            body.logprobs,
            None if ttft_ms is None else arrived + ttft_ms / 1e3,
            read_min_quality_worst(headers),
        )

    async def _check_schema(self, context: Context, body: ChatBody) -> None:
        """Raise BadRequest for a JSON schema that no answer can be held to."""
        if body.options.json_schema:
            async with deadline_timeout(context.objective.deadline):
                check = partial(check_schema_apart, body.options.json_schema)
                await self.decoding.run(check, "schemas")

    def _call(self, context: Context, body: ChatBody) -> ChatCall:
        """The call of the cluster, with pictures that are not decoded yet."""
        return ChatCall(
            context.id, context.card.name, body.messages.turns,
            [NOT_DECODED] * len(body.messages.pictures), body.options,
            self.admission.engine_objective(context), context.options.first_token_by,
            context.options.min_quality_worst, context.plan, body.objective.may_shorten, context.bypass_cache,
        )  # fmt: skip

    async def _generate(
        self, context: Context, call: ChatCall, decode_s: float, events: EventStream
    ) -> Response:
        """The answer. A stream is sent on the way, and its response is not sent again."""
        options = context.options
        state, first_token_at = ChatAnswerState(context.id, context.card, options.logprobs, decode_s), 0.0
        stream = ChatStream(events, state, options.include_usage) if options.stream else None
        with naming_messages():
            async with aclosing(self.admission.reserve(context).chat(call)) as answer:
                async for event in answer:
                    state.add(event)
                    if isinstance(event, ChatStarted):
                        first_token_at = monotonic()
                    elif isinstance(event, ChatEnded):
                        state.slo_met = deadlines_met(context, first_token_at)
                    if stream is not None:
                        await stream.write(event)
        total_s = monotonic() - context.arrived
        response = ChatResponse(state, total_s, streamed=options.stream)
        if stream is not None:
            await stream.end()
        self.meters[context.card.name].record_chat(state.start, len(call.pictures), total_s, state.slo_met)
        return response


def deadlines_met(context: Context, first_token_at: float) -> bool | None:
    """Whether an answer that is complete now meets its deadlines; None without one.

    first_token_at: when its first token came, in seconds of the monotonic clock.
    """
    met, first_by = context.deadline_met(monotonic() - context.arrived), context.options.first_token_by
    return met if first_by is None else met is not False and first_token_at <= first_by


@contextmanager
def naming_messages() -> Iterator[None]:
    """What a model refuses, such as a chat that is too long, are the messages."""
    try:
        yield
    except BadRequest as error:
        if not isinstance(error, BadPlan):
            error.param = error.param or "messages"
        raise
