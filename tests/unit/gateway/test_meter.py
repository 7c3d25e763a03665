"""What the metrics count for each answer of a model."""

import numpy as np
import pytest

from foveate.core.metrics import Metrics
from foveate.core.outcome import Outcome, Reason, Result, Timings
from foveate.core.plan import Plan
from foveate.gateway.meter import Meter
from tests.support.fake_runner import FULL, HALF, FakeRunner


def outcome(plan: Plan, reason: Reason = "full") -> Outcome:
    result = Result(np.array([0.75, 0.25], np.float32), 5, 9, 0.5)
    return Outcome(result, plan, Timings(0.0, 0.0), 1, reason)


def sample(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"foveate_{name}", {"model": "fake"} | labels)


def test_a_full_answer_is_counted_once_in_each_metric() -> None:
    metrics = Metrics()
    Meter(metrics, FakeRunner().card).record(outcome(FULL), 0.25, True)
    assert sample(metrics, "rung_total", rung="full") == 1
    assert sample(metrics, "request_duration_seconds_sum", task="classify") == 0.25
    assert sample(metrics, "kept_token_ratio_sum") == 0.5
    assert sample(metrics, "exit_layer_sum") == 9
    assert sample(metrics, "served_quality_sum") == 1.0
    assert sample(metrics, "slo_total", met="true") == 1
    assert sample(metrics, "slo_total", met="false") == 0
    assert sample(metrics, "degraded_total", reason="full") is None


def test_an_answer_below_full_is_degraded_for_a_reason() -> None:
    metrics = Metrics()
    Meter(metrics, FakeRunner().card).record(outcome(HALF, "load"), 0.25, False)
    assert sample(metrics, "rung_total", rung="evit:0.5") == 1
    assert sample(metrics, "degraded_total", reason="load") == 1
    assert sample(metrics, "served_quality_sum") == 0.9
    assert sample(metrics, "slo_total", met="false") == 1


def test_plans_outside_the_ladder_share_a_label_and_have_no_quality() -> None:
    metrics = Metrics()
    meter = Meter(metrics, FakeRunner().card)
    for depth in (3, 4):
        meter.record(outcome(Plan("fake", 32, depth=depth), "pinned"), 0.25, None)
    assert sample(metrics, "rung_total", rung="other") == 2
    assert sample(metrics, "served_quality_count") == 0
    assert sample(metrics, "slo_total", met="true") == sample(metrics, "slo_total", met="false") == 0


@pytest.mark.parametrize(("quality", "measured"), [(0.9, 1), (None, 0)])
def test_a_cached_answer_has_a_duration_and_a_quality_but_no_rung(
    quality: float | None, measured: int
) -> None:
    metrics = Metrics()
    Meter(metrics, FakeRunner().card).record_cached(quality, 0.001, True)
    assert sample(metrics, "request_duration_seconds_count", task="classify") == 1
    assert sample(metrics, "served_quality_count") == measured
    assert sample(metrics, "slo_total", met="true") == 1
    assert sample(metrics, "rung_total", rung="full") is None
