"""Every request ends in exactly one outcome."""

import asyncio
import json
from types import SimpleNamespace
from typing import Any, cast

import pytest
from starlette.responses import Response

from foveate.core.errors import BadRequest, ClientGone, DeadlineExceeded, Draining, Overloaded
from foveate.core.metrics import Metrics
from foveate.core.request import Objective
from foveate.gateway.routes.context import RequestLog
from foveate.gateway.routes.request_counter import RequestCounter
from foveate.gateway.routes.services import RouteServices
from foveate.gateway.schemas.problems import problem

pytestmark = pytest.mark.anyio


def counter(draining: bool = False) -> tuple[RequestCounter, Metrics]:
    metrics = Metrics()
    services = SimpleNamespace(metrics=metrics, tracing=None, cluster=SimpleNamespace(draining=draining))
    return RequestCounter(cast("RouteServices", services), "chat", "/chat", problem), metrics


def outcomes(metrics: Metrics) -> dict[str, float]:
    (family,) = (each for each in metrics.registry.collect() if each.name == "foveate_requests")
    return {
        sample.labels["outcome"]: sample.value for sample in family.samples if sample.name.endswith("_total")
    }


@pytest.mark.parametrize(
    ("error", "status", "outcome"),
    [
        (BadRequest("bad"), 400, "invalid"), (Overloaded("busy"), 429, "refused"),
        (DeadlineExceeded("late"), 504, "expired"), (ClientGone("gone"), 499, "cancelled"),
        (Draining("drains"), 503, "refused"), (ValueError("a secret"), 500, "failed"),
    ],
)  # fmt: skip
async def test_a_failure_is_counted_once_and_rendered(error: Exception, status: int, outcome: str) -> None:
    async def fail(request_id: str, request_log: RequestLog) -> Response:
        request_log.model, request_log.objective = "m", Objective(1.0)
        raise error

    requests, metrics = counter()
    response = await requests.run({"x-request-id": "mine"}, 0.0, fail)
    assert (response.status_code, response.headers["x-request-id"]) == (status, "mine")
    assert outcomes(metrics) == {outcome: 1.0}
    assert b"secret" not in bytes(response.body)


async def test_an_answer_is_counted_once() -> None:
    async def answer(request_id: str, request_log: RequestLog) -> Response:
        return Response(request_id)

    requests, metrics = counter()
    response = await requests.run({}, 0.0, answer)
    assert len(bytes(response.body)) == 24
    assert outcomes(metrics) == {"ok": 1.0}


@pytest.mark.parametrize("draining", [False, True])
async def test_a_cancelled_request_gets_an_answer_at_the_end_of_a_drain(draining: bool) -> None:
    async def wait(request_id: str, request_log: RequestLog) -> Response:
        await asyncio.Event().wait()
        raise AssertionError

    requests, metrics = counter(draining)
    running: Any = asyncio.ensure_future(requests.run({}, 0.0, wait))
    await asyncio.sleep(0)
    running.cancel()
    if draining:
        response = await running
        assert json.loads(bytes(response.body))["title"] == "Draining"
    else:
        with pytest.raises(asyncio.CancelledError):
            await running
    assert outcomes(metrics) == {"refused" if draining else "cancelled": 1.0}
