"""The end of an answered request: it is counted once, its stages are timed, its deadline is checked."""

from time import monotonic
from typing import Any

import pytest

from foveate.core.metrics import Metrics
from foveate.core.outcome import Outcome, Result, Timings
from foveate.core.request import Objective
from foveate.gateway.meter import Meter
from foveate.gateway.routes.completion import complete
from foveate.gateway.routes.context import ClientChoice, RequestContext, RequestLog
from tests.support.fake_runner import FULL, HALF, FakeRunner
from tests.support.gateway import serving_fakes

pytestmark = pytest.mark.anyio
RESULT = Result(None, 5, 12, 0.5)  # type: ignore[arg-type]  # scores are not read here


def context(objective: Objective, age_s: float = 1.0) -> RequestContext[None]:
    """A request that arrived so many seconds ago."""
    choice, card = ClientChoice(None, None), FakeRunner().card
    return RequestContext("id", card, objective, None, choice, None, monotonic() - age_s, RequestLog())


def test_slowest_outcome_is_counted_once_and_timed() -> None:
    metrics, request = Metrics(), context(Objective())
    meters = {"fake": Meter(metrics, request.card)}
    outcomes = [
        Outcome(RESULT, FULL, Timings(0.1, 0.1), 1),
        Outcome(RESULT, HALF, Timings(0.3, 0.2), 1),
        Outcome(RESULT, FULL, Timings(0.0, 0.4), 1),
    ]
    served = complete(meters, request, outcomes, 0.05, render_started=monotonic() - 0.2)
    assert list(served.timings_s) == ["decode", "queue", "compute", "render", "total"]
    assert (served.timings_s["queue"], served.timings_s["compute"]) == (0.3, 0.2)
    assert 0.2 <= served.timings_s["render"] < 1.0 <= served.timings_s["total"]
    sample = metrics.registry.get_sample_value
    assert sample("foveate_rung_total", {"model": "fake", "rung": "evit:0.5"}) == 1
    assert sample("foveate_rung_total", {"model": "fake", "rung": "full"}) is None
    labels = {"model": "fake", "task": "classify"}
    assert sample("foveate_request_duration_seconds_count", labels) == 1


@pytest.mark.parametrize(("left_s", "met"), [(None, None), (5.0, "true"), (-5.0, "false")])
def test_deadline_is_checked_at_completion(left_s: float | None, met: str | None) -> None:
    metrics = Metrics()
    objective = Objective() if left_s is None else Objective(deadline=monotonic() + left_s)
    request = context(objective)
    meters = {"fake": Meter(metrics, request.card)}
    served = complete(meters, request, [Outcome(RESULT, FULL, Timings(0, 0), 1)], 0.0, cache="hit")
    assert served.cache == "hit"
    assert "render" not in served.timings_s
    counts = {
        value: metrics.registry.get_sample_value("foveate_slo_total", {"model": "fake", "met": value})
        for value in ("true", "false")
    }
    assert counts == {"true": float(met == "true"), "false": float(met == "false")}


async def test_answer_after_its_deadline_is_not_marked_as_met(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving_fakes() as gateway:
        submit = gateway.cluster.submit

        async def stalled(request: Any, reserved: bool) -> Any:
            outcome = await submit(request, reserved)
            late = request.objective.deadline + 0.001
            monkeypatch.setattr("foveate.gateway.routes.completion.monotonic", lambda: late)
            return outcome

        monkeypatch.setattr(gateway.cluster, "submit", stalled)
        response = await gateway.post("/classify", x_slo_ms="60000")
    assert response.status_code == 200
    assert response.headers["x-slo-met"] == "false"
