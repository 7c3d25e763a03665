"""What the task routes share."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from starlette.responses import Response

from foveate.cluster import Cluster
from foveate.core.metrics import Metrics
from foveate.core.settings import Settings
from foveate.gateway.caching.features import FeatureCache
from foveate.gateway.caching.response import ResponseCache
from foveate.gateway.decoding import Decoding
from foveate.gateway.fetching.fetcher import UrlFetcher
from foveate.gateway.limits import AdmissionLimiter, SpoolBudget
from foveate.gateway.meter import Meter

Meters = Mapping[str, Meter]
"""The metrics of each model's answers, by model name."""


class TraceSink(Protocol):
    """Receives every finished request as a trace."""

    def record(
        self,
        path: str,
        model: str,
        outcome: str,
        arrived: float,
        headers: Mapping[str, str],
        response: Response,
    ) -> None:
        """Record one request. arrived: monotonic clock seconds; headers: the request's, in lower case."""
        ...

    def close(self) -> None:
        """Send the traces that are still in memory. Blocks."""
        ...


@dataclass(frozen=True, slots=True)
class RouteServices:
    """The cluster, the limits, the thread pools and the caches that all task routes use."""

    cluster: Cluster
    settings: Settings
    metrics: Metrics
    limiter: AdmissionLimiter
    spool_budget: SpoolBudget
    decoding: Decoding
    url_fetcher: UrlFetcher
    response_cache: ResponseCache | None = None
    """None: responses are not cached."""
    feature_cache: FeatureCache | None = None
    """None: features are not cached."""
    tracing: TraceSink | None = None
    """None: requests are not traced."""
