"""The ASGI application: routes around a cluster."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

import orjson
from fastapi import FastAPI, Request
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from foveate.cluster import Cluster
from foveate.core.errors import UnknownModel
from foveate.core.metrics import Metrics
from foveate.core.settings import Settings
from foveate.gateway.classify import Classifier, request_id_of
from foveate.gateway.openapi import describe_classify
from foveate.gateway.problems import http_problem, problem
from foveate.gateway.wire import card_fields, rung_fields


def create_app(cluster: Cluster, settings: Settings, metrics: Metrics) -> FastAPI:
    """The gateway in front of a cluster. Starting it starts the cluster; stopping it closes it."""
    classifier = Classifier(cluster, settings, metrics)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await cluster.start()
        yield
        await cluster.close()
        classifier.close()

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
    app.state.door = classifier.door

    app.router.routes.append(Route("/classify", classifier, methods=["POST"]))
    app.add_middleware(Shortcut, path="/classify", endpoint=classifier)
    add_models(app, cluster)
    add_health(app, cluster, metrics)
    describe_classify(app)
    return app


class Shortcut:
    """Takes the one busy call past the framework's layers, which do nothing for it: the endpoint has
    its own bounds and turns its own errors into answers. The route proper stays, for other methods."""

    def __init__(self, app: ASGIApp, path: str, endpoint: ASGIApp) -> None:
        self.app, self.path, self.endpoint = app, path, endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        ours = scope["type"] == "http" and scope["path"] == self.path and scope["method"] == "POST"
        await (self.endpoint if ours else self.app)(scope, receive, send)


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


def add_health(app: FastAPI, cluster: Cluster, metrics: Metrics) -> None:
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
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)


def as_json(value: object, status: int = 200) -> Response:
    return Response(orjson.dumps(value), status, media_type="application/json")
