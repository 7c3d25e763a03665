"""The ASGI application: routes around a cluster."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from foveate.cache import Cache
from foveate.cluster import Cluster
from foveate.cluster.metrics_aggregator import AggregatedCollector, MetricSnapshot
from foveate.core.errors import SetupError, Unavailable, UnknownModel
from foveate.core.metrics import Metrics
from foveate.core.nearest_names import did_you_mean
from foveate.core.settings import Settings
from foveate.gateway.caching.stores import (
    feature_cache_of,
    open_feature_store,
    open_response_store,
    response_cache_of,
)
from foveate.gateway.decoding import Decoding
from foveate.gateway.fetching.fetcher import UrlFetcher
from foveate.gateway.limits import AdmissionLimiter, SpoolBudget
from foveate.gateway.routes.base import TaskRoute
from foveate.gateway.routes.chat import ChatRoute
from foveate.gateway.routes.classify import ClassifyRoute
from foveate.gateway.routes.context import request_id_of
from foveate.gateway.routes.embed import EmbedRoute
from foveate.gateway.routes.openai_models import add_openai_models
from foveate.gateway.routes.segment import SegmentRoute
from foveate.gateway.routes.services import RouteServices, TraceSink
from foveate.gateway.schemas.image import ModelLadder, ModelList, ProbeAnswer, card_fields, rung_fields
from foveate.gateway.schemas.openai_errors import http_error
from foveate.gateway.schemas.openapi import describe_tasks, problem_response
from foveate.gateway.schemas.problems import problem
from foveate.gateway.schemas.response import EXPOSED_HEADERS

CollectMetrics = Callable[[], Awaitable[Sequence[MetricSnapshot]]]
"""Collects the metrics of all processes that belong together."""


def create_app(
    cluster: Cluster,
    settings: Settings,
    metrics: Metrics,
    cache: Cache | None = None,
    collect_metrics: CollectMetrics | None = None,
) -> FastAPI:
    """The gateway in front of a cluster. Its lifespan starts and closes the cluster.

    cache: the response cache; None: as the settings say. collect_metrics: None: this process is the only
    one. Raises SetupError.
    """
    response_store = cache or open_response_store(settings, metrics)
    feature_store = open_feature_store(settings, metrics, response_store)
    services = route_services(cluster, settings, metrics, response_store, feature_store)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await cluster.start()
        yield
        await cluster.close()
        services.decoding.close()
        services.url_fetcher.close()
        await response_store.close()
        await feature_store.close()
        if services.tracing is not None:
            await asyncio.to_thread(services.tracing.close)

    app = FastAPI(
        title="Foveate",
        version=version("foveate"),
        lifespan=lifespan,
        redirect_slashes=False,
        # The framework's documentation pages fetch scripts from other hosts; /openapi.json does not.
        docs_url=None,
        redoc_url=None,
    )
    app.add_exception_handler(HTTPException, http_error)
    app.state.limiter, app.state.cache, app.state.features = services.limiter, response_store, feature_store
    add_tasks(
        app, [ClassifyRoute(services), SegmentRoute(services), EmbedRoute(services), ChatRoute(services)]
    )
    add_models(app, cluster)
    add_openai_models(app, cluster)
    add_health(app, cluster, metrics, collect_metrics)
    describe_tasks(app)
    allow_origins(app, settings.cors_origins)
    return app


def route_services(
    cluster: Cluster, settings: Settings, metrics: Metrics, response_store: Cache, feature_store: Cache
) -> RouteServices:
    """What the task routes share. Raises SetupError."""
    spool_budget = SpoolBudget(settings.spool_bytes, settings.max_video_bytes)
    decoding = Decoding(settings.decode_threads, cluster.host_load, settings.decode_bytes)
    return RouteServices(
        cluster,
        settings,
        metrics,
        AdmissionLimiter(settings.in_flight_items, settings.in_flight_bytes, settings.max_body_bytes),
        spool_budget,
        decoding,
        UrlFetcher(settings, metrics, spool_budget, decoding),
        response_cache_of(settings, metrics, response_store),
        feature_cache_of(settings, metrics, feature_store),
        tracing_of(settings),
    )


def tracing_of(settings: Settings) -> TraceSink | None:
    """The sink of OpenTelemetry traces; None if traces are off. Raises SetupError without OpenTelemetry."""
    if not settings.traces:
        return None
    try:
        from foveate.gateway.tracing import Tracing
    except ModuleNotFoundError:
        raise SetupError("OpenTelemetry is not installed: pip install 'foveate[otel]'") from None
    return Tracing.to(settings.traces)


class FastPath:
    """Sends POST requests to the task routes past the framework's layers, and HEAD to the routes of GET.

    The layers do nothing for task routes, which have limits of their own and render their own errors. The
    framework's routes stay, for other methods. The server leaves out the bodies of answers to HEAD.
    """

    def __init__(self, app: ASGIApp, routes: Mapping[str, ASGIApp]) -> None:
        self.app, self.routes = app, routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI)."""
        route = None
        if scope["type"] == "http":
            if scope["method"] == "POST":
                route = self.routes.get(scope["path"])
            elif scope["method"] == "HEAD":
                scope = {**scope, "method": "GET"}
        await (route or self.app)(scope, receive, send)


def add_tasks(app: FastAPI, routes: Sequence[TaskRoute[Any] | ChatRoute]) -> None:
    """Add the task routes, and the middleware that sends POST requests straight to them."""
    for route in routes:
        app.router.routes.append(Route(route.path, route, methods=["POST"]))
    app.add_middleware(FastPath, routes={route.path: route for route in routes})


def allow_origins(app: FastAPI, origins: Sequence[str]) -> None:
    """Let web pages of these origins call every route from a browser (CORS). `*` stands for all pages.

    Call it last: the outermost layer answers preflight requests, and adds its headers to problems too.
    """
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=("GET", "HEAD", "POST"),
            allow_headers=("*",),
            expose_headers=EXPOSED_HEADERS,
        )


def add_models(app: FastAPI, cluster: Cluster) -> None:
    """Add the routes that list models and their ladders."""

    @app.get("/models", response_model=ModelList)
    async def models() -> Response:
        """The cards of all served models."""
        return as_json({"models": [card_fields(card) for card in cluster.cards().values()]})

    @app.get(
        "/models/{name}/ladder",
        response_model=ModelLadder,
        responses={404: problem_response("Unknown model")},
    )
    async def ladder(name: str, request: Request) -> Response:
        """A model's plans, cheapest first, with their measured quality."""
        card = cluster.cards().get(name)
        if card is None:
            known = f"; the models are {', '.join(cluster.cards())}"
            hint = did_you_mean(name, cluster.cards()) or known
            error = UnknownModel(f"no model {name[:60]!r} is served{hint}")
            return problem(error, request_id_of(request.headers.get("x-request-id", "")))
        return as_json({"model": card.name, "ladder": [rung_fields(rung, card.full) for rung in card.ladder]})


def add_health(
    app: FastAPI, cluster: Cluster, metrics: Metrics, collect_metrics: CollectMetrics | None
) -> None:
    """Add probes and metrics. Liveness depends on nothing but this process and its device."""

    @app.get(
        "/livez",
        response_model=ProbeAnswer,
        responses={503: {"description": "Only a restart helps", "model": ProbeAnswer}},
    )
    async def livez() -> Response:
        """The process is alive, and no forward has to be ended by a restart."""
        if cluster.failed:
            return as_json({"status": "failed", "reason": cluster.problem}, 503)
        return as_json({"status": "alive"})

    @app.get(
        "/readyz",
        response_model=ProbeAnswer,
        responses={
            503: {
                "description": "Starting, draining, or the device does not respond",
                "model": ProbeAnswer,
            }
        },
    )
    async def readyz() -> Response:
        """Models are loaded and can answer, no forward hangs, and the server is not draining."""
        if cluster.ready:
            return as_json({"status": "ready"})
        if cluster.problem and not cluster.draining:
            return as_json(
                {"status": "failed" if cluster.failed else "hanging", "reason": cluster.problem}, 503
            )
        return as_json({"status": "draining" if cluster.draining else "starting"}, 503)

    unavailable = problem_response("The figures of the other processes are unavailable")

    @app.get("/metrics", response_class=PlainTextResponse, responses={503: unavailable})
    async def exposition() -> Response:
        """Prometheus text format."""
        try:
            source: Collector = metrics.registry
            if collect_metrics is not None:
                source = AggregatedCollector(await collect_metrics())
        except Unavailable as error:
            # An error is better than the figures of one process among several.
            return problem(error, request_id_of(""))
        return Response(generate_latest(source), media_type=CONTENT_TYPE_LATEST)


def as_json(value: object, status: int = 200) -> Response:
    """A JSON response."""
    return Response(orjson.dumps(value), status, media_type="application/json")
