"""A running gateway for tests: the real app and real ASGI calls, in front of runners in this process."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any, Generic, TypeVar

import httpx

from foveate.cache import Cache
from foveate.cluster.local import LocalCluster
from foveate.core.metrics import Metrics
from foveate.core.settings import Settings
from foveate.engine.runner import Runner
from foveate.gateway.app import create_app
from foveate.gateway.schemas.image import Problem
from tests.support.fake_runner import FakeRunner

R = TypeVar("R", bound=Runner)
Body = bytes | AsyncIterator[bytes]


def identity(runner: Any) -> Any:
    """The runner itself: a factory of a runner that a test has made."""
    return runner


class Gateway(Generic[R]):
    """The app, its client, and the runner under test."""

    def __init__(self, runner: R, *others: Runner, settings: Settings, cache: Cache | None = None) -> None:
        """others: further models. cache: the store of responses; None: as the settings say."""
        self.runner, self.card, self.metrics = runner, runner.card, Metrics()
        runners: list[Runner] = [runner, *others]
        factories = [partial(identity, each) for each in runners]
        self.cluster = LocalCluster(factories, self.metrics, settings.queue_items, settings.queue_bytes)
        self.app = create_app(self.cluster, settings, self.metrics, cache)
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://test")

    async def post(
        self, path: str, body: Body = b"image", query: Mapping[str, str] | None = None, **headers: Any
    ) -> httpx.Response:
        """Send media, by default as image/jpeg. Underscores in the names of headers stand for hyphens."""
        named = {"content-type": "image/jpeg"} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        return await self.client.post(path, content=body, headers=named, params=query)

    async def get(self, path: str) -> httpx.Response:
        """Send a GET request."""
        return await self.client.get(path)

    def metric(self, name: str, **labels: str) -> float:
        """The value of a metric; 0 if it has no such series."""
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    def counted(self, outcome: str, model: str = "", task: str = "") -> float:
        """The requests of this outcome. Empty: the model and the task of the runner under test."""
        labels = {"model": model or self.card.name, "task": task or self.card.task, "outcome": outcome}
        return self.metric("foveate_requests_total", **labels)


@asynccontextmanager
async def serving(
    runner: R, *others: Runner, cache: Cache | None = None, **settings: Any
) -> AsyncIterator[Gateway[R]]:
    """A gateway with these runners and settings. Runners that a test still holds are released at the end."""
    gateway = Gateway(runner, *others, settings=Settings(**settings), cache=cache)
    async with gateway.app.router.lifespan_context(gateway.app), gateway.client:
        try:
            yield gateway
        finally:
            for held in (runner, *others):
                if hasattr(held, "gate"):
                    held.gate.set()


def serving_fakes(**settings: Any) -> AbstractAsyncContextManager[Gateway[FakeRunner]]:
    """A gateway with two fake models for classification, `fake` and `other`."""
    return serving(FakeRunner(), FakeRunner("other"), **settings)


def assert_problem(response: httpx.Response, status: int, words: str = "") -> str:
    """The detail of a response that is a problem (RFC 9457) with this status; words: part of its detail."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = Problem.model_validate_json(response.content)
    assert body.status == status
    assert words in body.detail
    assert len(body.detail) < 250
    assert "Traceback" not in response.text
    return body.detail
