"""A client of Prometheus' HTTP API."""

import json
import math
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from foveate.autoscaler.policy import DemandSample

TIMEOUT_S = 10.0


class PrometheusError(Exception):
    """Prometheus gave no answer, an error, or another number of series than one. The text is one sentence."""


class PrometheusClient:
    """Sends queries to one Prometheus server. The calls block: use a thread of their own."""

    def __init__(self, url: str) -> None:
        """url: such as http://127.0.0.1:9090. Raises ValueError for another scheme than http and https."""
        if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
            raise ValueError(f"{url!r} is not the URL of a server; use one such as http://127.0.0.1:9090")
        self.url = url.rstrip("/")

    def query_value(self, query: str) -> float | None:
        """The value of an instant query, or None if it gives none. Raises PrometheusError."""
        series = self._single_series("query", {"query": query})
        return None if series is None else _finite(series["value"][1])

    def query_range(self, query: str, seconds: float, step_s: float, now: float) -> list[DemandSample]:
        """The series of a query over the seconds before `now` (Unix time), a sample each step.

        Raises PrometheusError.
        """
        span = {"start": f"{now - seconds:.3f}", "end": f"{now:.3f}", "step": f"{step_s:g}"}
        series = self._single_series("query_range", {"query": query, **span})
        pairs = [] if series is None else series["values"]
        return [DemandSample(float(at), _finite(value) or 0.0) for at, value in pairs]

    def _single_series(self, endpoint: str, fields: dict[str, str]) -> Any:
        """The series of a result, or None. Raises PrometheusError, also for several series."""
        result = self.request(endpoint, fields)
        if len(result) > 1:
            raise PrometheusError(
                f"the query {fields['query']!r} gives {len(result)} series; "
                "aggregate them to one, as in sum(...)"
            )
        return result[0] if result else None

    def request(self, endpoint: str, fields: dict[str, str]) -> list[Any]:
        """The series of a result as Prometheus' API has them. A scalar is one series.

        endpoint: query or query_range. Raises PrometheusError.
        """
        url = f"{self.url}/api/v1/{endpoint}?{urllib.parse.urlencode(fields)}"
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:  # noqa: S310
                body = json.load(response)
        except urllib.error.HTTPError as error:
            raise PrometheusError(f"{self.url} answered {error.code}: {_error_text(error)}") from None
        except (OSError, ValueError) as error:
            raise PrometheusError(f"{self.url} did not answer: {error}") from None
        try:
            result = body["data"]["result"]
            if body["data"]["resultType"] == "scalar":
                result = [{"value": result}]
            return list(result)
        except (KeyError, TypeError):
            raise PrometheusError(f"{self.url} is not a Prometheus server; check the address") from None


def _error_text(error: urllib.error.HTTPError) -> str:
    """The error text that Prometheus gives for a query it cannot run."""
    try:
        return str(json.load(error)["error"])
    except (OSError, ValueError, KeyError, TypeError):
        return error.reason or "no reason given"


def _finite(text: str) -> float | None:
    """The number, or None for NaN and infinity."""
    value = float(text)
    return value if math.isfinite(value) else None
