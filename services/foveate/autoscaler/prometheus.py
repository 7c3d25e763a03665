"""Asks a Prometheus server, over its HTTP API."""

import json
import math
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from foveate.autoscaler.policy import DemandSample

TIMEOUT_S = 10.0


class PrometheusError(Exception):
    """Prometheus did not answer, or not what was asked; one sentence."""


class PrometheusClient:
    """One server. Blocks: for a thread of its own."""

    def __init__(self, url: str) -> None:
        """url: as in http://127.0.0.1:9090. Raises ValueError for anything else."""
        if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
            raise ValueError(f"{url!r} is no address of a server; it looks like http://127.0.0.1:9090")
        self.url = url.rstrip("/")

    def now(self, query: str) -> float | None:
        """The one value of an instant query; None where there is none. Raises Unanswered."""
        found = self._ask("query", {"query": query})
        if len(found) > 1:
            raise PrometheusError(f"{query!r} gives {len(found)} series, and one is wanted: sum them")
        values = [_number(one["value"][1]) for one in found]
        return values[0] if values else None

    def lately(self, query: str, seconds: float, step_s: float, now: float) -> list[DemandSample]:
        """The one series of a query over the seconds before `now`, seconds since 1970. Raises Unanswered."""
        span = {"start": f"{now - seconds:.3f}", "end": f"{now:.3f}", "step": f"{step_s:g}"}
        found = self._ask("query_range", {"query": query, **span})
        if len(found) > 1:
            raise PrometheusError(f"{query!r} gives {len(found)} series, and one is wanted: sum them")
        pairs = found[0]["values"] if found else []
        seen = [DemandSample(float(at), _number(value) or 0.0) for at, value in pairs]
        return [one for one in seen if math.isfinite(one.demand)]

    def _ask(self, call: str, fields: dict[str, str]) -> list[Any]:
        address = f"{self.url}/api/v1/{call}?{urllib.parse.urlencode(fields)}"
        try:
            with urllib.request.urlopen(address, timeout=TIMEOUT_S) as answer:  # noqa: S310
                said = json.load(answer)
        except urllib.error.HTTPError as error:
            raise PrometheusError(f"{self.url} answered {error.code}: {_why(error)}") from None
        except (OSError, ValueError) as error:
            raise PrometheusError(f"{self.url} did not answer: {error}") from None
        try:
            found = said["data"]["result"]
            if said["data"]["resultType"] == "scalar":
                found = [{"value": found}]
            return list(found)
        except (KeyError, TypeError):
            raise PrometheusError(f"{self.url} is no Prometheus") from None


def _why(error: urllib.error.HTTPError) -> str:
    """What Prometheus says of a query that it cannot read."""
    try:
        return str(json.load(error)["error"])
    except (OSError, ValueError, KeyError, TypeError):
        return error.reason or "nothing more"


def _number(text: str) -> float | None:
    value = float(text)
    return value if math.isfinite(value) else None
