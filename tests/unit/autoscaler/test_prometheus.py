"""The client of Prometheus' HTTP API: values, ranges, and answers that it refuses."""

import math
from collections.abc import Iterator

import pytest

from foveate.autoscaler.policy import DemandSample
from foveate.autoscaler.prometheus import PrometheusClient, PrometheusError
from tests.support.prometheus_api import PrometheusApi, prometheus_api


@pytest.fixture
def api() -> Iterator[PrometheusApi]:
    with prometheus_api() as running:
        yield running


def test_an_instant_query_gives_its_value(api: PrometheusApi) -> None:
    client = PrometheusClient(f"{api.url}/")
    api.set_value("demand", 2.5)
    api.set_value("undefined", math.nan)
    api.set_result("nothing")
    api.set_result("scalar", [0, "3"], kind="scalar")
    assert client.query_value("demand") == 2.5
    assert client.query_value("undefined") is None
    assert client.query_value("nothing") is None
    assert client.query_value("scalar") == 3
    assert {request["endpoint"] for request in api.requests} == {"query"}


def test_a_range_query_gives_its_samples(api: PrometheusApi) -> None:
    client = PrometheusClient(api.url)
    api.set_range("demand", (100, 1.5), (105, math.nan))
    api.set_result("nothing", kind="matrix")
    samples = client.query_range("demand", 60, 5, 110)
    assert samples == [DemandSample(100, 1.5), DemandSample(105, 0)]
    assert client.query_range("nothing", 60, 5, 110) == []
    expected = {"endpoint": "query_range", "start": "50.000", "end": "110.000", "step": "5"}
    assert api.requests[0].items() >= expected.items()


def test_several_series_are_refused(api: PrometheusApi) -> None:
    api.set_result("two", {"value": [0, "1"]}, {"value": [0, "2"]})
    with pytest.raises(PrometheusError, match="gives 2 series; aggregate them"):
        PrometheusClient(api.url).query_value("two")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"<html>", "did not answer"),
        (b"[]", "is not a Prometheus server"),
        (b'{"data": {}}', "is not a Prometheus server"),
        (None, "answered 400: parse error"),
    ],
)
def test_a_wrong_answer_is_an_error(api: PrometheusApi, body: bytes | None, message: str) -> None:
    if body is not None:
        api.bodies["query", "demand"] = body
    with pytest.raises(PrometheusError, match=message):
        PrometheusClient(api.url).query_value("demand")


def test_a_url_without_a_scheme_is_refused() -> None:
    with pytest.raises(ValueError, match="not the URL of a server"):
        PrometheusClient("localhost:9090")
