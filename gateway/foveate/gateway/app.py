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
from foveate.gateway.routes.classify import ClassifyRoute
from foveate.gateway.routes.context import request_id_of
from foveate.gateway.routes.segment import SegmentRoute
from foveate.gateway.schemas.image import card_fields, rung_fields
from foveate.gateway.schemas.openapi import describe_tasks
from foveate.gateway.schemas.problems import http_problem, problem

Told = Callable[[], Awaitable[Sequence[MetricSnapshot]]]

LARGEST = 16
"""No answer is kept that is more than the cache over this."""


def create_app(
    cluster: Cluster,
    settings: Settings,
    metrics: Metrics,
    cache: Cache | None = None,
    told: Told | None = None,
) -> FastAPI:
    """The gateway in front of a cluster. Starting it starts the cluster; stopping it closes it.

    cache: where answers are kept; None: as the settings say. told: the metrics of all processes that belong
    together; None: this is the only one.
    """
    door = AdmissionLimiter(settings.in_flight_items, settings.in_flight_bytes, settings.max_body_bytes)
    decoding = Decoding(settings.decode_threads, cluster.host)
    disk = SpoolBudget(settings.spool_bytes, settings.max_video_bytes)
    kept = cache or cache_of(settings, metrics)
    answers = None
    if settings.cache_bytes:
        answers = ResponseCache(kept, settings.cache_ttl_s, settings.cache_bytes // LARGEST, metrics)
    tracing = tracing_of(settings)
    seen = feature_cache_of(settings, metrics, kept)
    sights = None
    if settings.feature_bytes:
        sights = FeatureCache(seen, settings.cache_ttl_s, settings.feature_bytes // 2, metrics)
    tasks = [
        kind(cluster, settings, metrics, door, disk, decoding, answers, sights, tracing)
        for kind in (ClassifyRoute, SegmentRoute)
    ]

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await cluster.start()
        yield
        await cluster.close()
        decoding.close()
        await kept.close()
        await seen.close()
        if tracing is not None:
            await asyncio.to_thread(tracing.close)

    app = FastAPI(
        title="Foveate",
        version=version("foveate"),
        lifespan=lifespan,
        redirect_slashes=False,
        # The framework's pages fetch their scripts from other people's servers; /openapi.json does not.
        docs_url=None,
        redoc_url=None,
    )
    app.add_exception_handler(HTTPException, http_problem)
    app.state.door, app.state.cache, app.state.features = door, kept, seen
    for task in tasks:
        app.router.routes.append(Route(task.path, task, methods=["POST"]))
    app.add_middleware(FastPath, endpoints={task.path: task for task in tasks})
    add_models(app, cluster)
    add_health(app, cluster, metrics, told)
    describe_tasks(app)
    return app


def cache_of(settings: Settings, metrics: Metrics) -> Cache:
    """Where answers are kept. Raises SetupError for no address, or where what that takes is not installed."""
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
    except ValueError as error:  # the address itself may hold a password
        raise SetupError(f"the cache's address is not like redis://127.0.0.1:6379/0: {error}") from None


def feature_cache_of(settings: Settings, metrics: Metrics, answers: Cache) -> Cache:
    """Where what was seen is kept: with the answers where processes share them, else on its own."""
    if settings.cache != "memory":
        return answers
    memory = MemoryCache(settings.feature_bytes)
    metrics.cache_used.labels("features").set_function(lambda: memory.bytes)
    return memory


def tracing_of(settings: Settings) -> Any:
    """Raises SetupError where what that takes is not installed."""
    if not settings.traces:
        return None
    try:
        from foveate.gateway.tracing import Tracing
    except ModuleNotFoundError:
        raise SetupError("OpenTelemetry is not installed: pip install 'foveate[otel]'") from None
    return Tracing.to(settings.traces)


class FastPath:
    """Takes the busy calls past the framework's layers, which do nothing for them: the endpoints have
    their own bounds and turn their own errors into answers. The routes proper stay, for other methods."""

    def __init__(self, app: ASGIApp, endpoints: Mapping[str, ASGIApp]) -> None:
        self.app, self.endpoints = app, endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        ours = None
        if scope["type"] == "http" and scope["method"] == "POST":
            ours = self.endpoints.get(scope["path"])
        await (ours or self.app)(scope, receive, send)


def add_models(app: FastAPI, cluster: Cluster) -> None:
    """What is served, and at which prices."""

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


def add_health(app: FastAPI, cluster: Cluster, metrics: Metrics, told: Told | None) -> None:
    """Probes and metrics. Liveness touches nothing but this process."""

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
            found = metrics.registry if told is None else AggregatedCollector(await told())
        except Unavailable as error:
            # No figures are better than those of one process among several.
            return problem(error, request_id_of(""))
        return Response(generate_latest(found), media_type=CONTENT_TYPE_LATEST)


def as_json(value: object, status: int = 200) -> Response:
    return Response(orjson.dumps(value), status, media_type="application/json")
