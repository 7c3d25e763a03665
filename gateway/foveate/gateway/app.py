"""The ASGI application: routes around a cluster."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from foveate.cache import Cache
from foveate.cache.memory import MemoryCache
from foveate.cluster import Cluster
from foveate.cluster.metrics_aggregator import AggregatedCollector, MetricSnapshot
from foveate.core.errors import SetupError, Unavailable, UnknownModel
from foveate.core.metrics import Metrics
from foveate.core.settings import Settings
from foveate.gateway.caching.features import FeatureCache
from foveate.gateway.caching.response import ResponseCache
from foveate.gateway.decoding import Decoding
from foveate.gateway.limits import AdmissionLimiter, SpoolBudget
from foveate.gateway.routes.base import TaskRoute
from foveate.gateway.routes.classify import ClassifyRoute
from foveate.gateway.routes.context import request_id_of
from foveate.gateway.routes.segment import SegmentRoute
from foveate.gateway.routes.services import RouteServices
from foveate.gateway.schemas.image import card_fields, rung_fields
from foveate.gateway.schemas.openapi import describe_tasks
from foveate.gateway.schemas.problems import http_problem, problem

CollectMetrics = Callable[[], Awaitable[Sequence[MetricSnapshot]]]
"""Collects the metrics of all processes that belong together."""

MAX_RESPONSE_SHARE = 1 / 16
"""Largest cached response, as a share of the response cache."""
MAX_FEATURES_SHARE = 1 / 2
"""Largest cached features of one image, as a share of the feature cache."""


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
    services = RouteServices(
        cluster,
        settings,
        metrics,
        AdmissionLimiter(settings.in_flight_items, settings.in_flight_bytes, settings.max_body_bytes),
        SpoolBudget(settings.spool_bytes, settings.max_video_bytes),
        Decoding(settings.decode_threads, cluster.host),
        response_cache_of(settings, metrics, response_store),
        feature_cache_of(settings, metrics, feature_store),
        tracing := tracing_of(settings),
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await cluster.start()
        yield
        await cluster.close()
        services.decoding.close()
        await response_store.close()
        await feature_store.close()
        if tracing is not None:
            await asyncio.to_thread(tracing.close)

    app = FastAPI(
        title="Foveate",
        version=version("foveate"),
        lifespan=lifespan,
        redirect_slashes=False,
        # The framework's documentation pages fetch scripts from other hosts; /openapi.json does not.
        docs_url=None,
        redoc_url=None,
    )
    app.add_exception_handler(HTTPException, http_problem)
    app.state.limiter, app.state.cache, app.state.features = services.limiter, response_store, feature_store
    routes: list[TaskRoute[Any]] = [ClassifyRoute(services), SegmentRoute(services)]
    for route in routes:
        app.router.routes.append(Route(route.path, route, methods=["POST"]))
    app.add_middleware(FastPath, routes={route.path: route for route in routes})
    add_models(app, cluster)
    add_health(app, cluster, metrics, collect_metrics)
    describe_tasks(app)
    return app


def open_response_store(settings: Settings, metrics: Metrics) -> Cache:
    """The store of cached responses: this process's memory, or Redis.

    Raises SetupError for an address that does not parse, or without the redis package.
    """
    if settings.cache == "memory":
        memory = MemoryCache(settings.cache_bytes)
        metrics.cache_used.labels("answers").set_function(lambda: memory.bytes)
        return memory
    try:
        from foveate.cache.redis import RedisCache
    except ModuleNotFoundError:
        raise SetupError("redis is not installed: pip install 'foveate[redis]'") from None

    def count_error(reason: str) -> None:
        metrics.cache_errors.labels(reason).inc()
        metrics.cache_trouble.labels(reason).inc()

    try:
        return RedisCache(
            settings.cache,
            settings.cache_timeout_s,
            max(settings.cache_bytes, settings.feature_bytes),
            count_error,
        )
    except ValueError as error:  # the message must not show the address: it may hold a password
        detail = f"the address in FOVEATE_CACHE is not like redis://127.0.0.1:6379/0: {error}"
        raise SetupError(detail) from None


def open_feature_store(settings: Settings, metrics: Metrics, response_store: Cache) -> Cache:
    """The store of cached features: the responses' store if processes share it, else memory of its own."""
    if settings.cache != "memory":
        return response_store
    memory = MemoryCache(settings.feature_bytes)
    metrics.cache_used.labels("features").set_function(lambda: memory.bytes)
    return memory


def response_cache_of(settings: Settings, metrics: Metrics, store: Cache) -> ResponseCache | None:
    """The response cache; None if it is turned off."""
    if not settings.cache_bytes:
        return None
    max_entry_bytes = int(settings.cache_bytes * MAX_RESPONSE_SHARE)
    return ResponseCache(store, settings.cache_ttl_s, max_entry_bytes, metrics)


def feature_cache_of(settings: Settings, metrics: Metrics, store: Cache) -> FeatureCache | None:
    """The feature cache; None if it is turned off."""
    if not settings.feature_bytes:
        return None
    max_entry_bytes = int(settings.feature_bytes * MAX_FEATURES_SHARE)
    return FeatureCache(store, settings.cache_ttl_s, max_entry_bytes, metrics)


def tracing_of(settings: Settings) -> Any:
    """The sink of OpenTelemetry traces; None if traces are off. Raises SetupError without OpenTelemetry."""
    if not settings.traces:
        return None
    try:
        from foveate.gateway.tracing import Tracing
    except ModuleNotFoundError:
        raise SetupError("OpenTelemetry is not installed: pip install 'foveate[otel]'") from None
    return Tracing.to(settings.traces)


class FastPath:
    """Sends POST requests to the task routes past the framework's layers.

    The layers do nothing for them: task routes have limits of their own and render their own errors. The
    framework's routes stay, for other methods.
    """

    def __init__(self, app: ASGIApp, routes: Mapping[str, ASGIApp]) -> None:
        self.app, self.routes = app, routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI)."""
        route = None
        if scope["type"] == "http" and scope["method"] == "POST":
            route = self.routes.get(scope["path"])
        await (route or self.app)(scope, receive, send)


def add_models(app: FastAPI, cluster: Cluster) -> None:
    """Add the routes that list models and their ladders."""

    @app.get("/models")
    async def models() -> Response:
        """Every model served here."""
        return as_json({"models": [card_fields(card) for card in cluster.cards().values()]})

    @app.get("/models/{name}/ladder")
    async def ladder(name: str, request: Request) -> Response:
        """A model's plans, cheapest first, with their measured quality."""
        card = cluster.cards().get(name)
        if card is None:
            error = UnknownModel(f"no model {name[:60]!r} here; there are {', '.join(cluster.cards())}")
            return problem(error, request_id_of(request.headers.get("x-request-id", "")))
        return as_json({"model": card.name, "ladder": [rung_fields(rung, card.full) for rung in card.ladder]})


def add_health(
    app: FastAPI, cluster: Cluster, metrics: Metrics, collect_metrics: CollectMetrics | None
) -> None:
    """Add probes and metrics. Liveness depends on nothing but this process."""

    @app.head("/livez", include_in_schema=False)
    @app.get("/livez")
    async def livez() -> Response:
        """The process is alive."""
        return as_json({"status": "alive"})

    @app.head("/readyz", include_in_schema=False)
    @app.get("/readyz")
    async def readyz() -> Response:
        """Models are loaded and warm, and the server is not draining."""
        if cluster.ready:
            return as_json({"status": "ready"})
        return as_json({"status": "draining" if cluster.draining else "starting"}, 503)

    @app.get("/metrics")
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
