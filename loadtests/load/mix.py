"""SLO classes, and the class and image of each request of a run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from foveate.core.errors import SetupError

MAX_REQUESTS = 200_000
"""Maximum number of requests in one run; use the simulator for more."""


class WeightedSloClass(BaseModel):
    """One SLO class: its objective and its share of the traffic."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    deadline_ms: float = Field(gt=0, le=3_600_000)
    ttft_ms: float = Field(default=0.0, ge=0, le=3_600_000)
    """The deadline of the first token of a chat; 0 for none."""
    min_quality: float = Field(default=0.0, ge=0, le=1)
    priority: int = Field(default=0, ge=-9, le=9)
    tenant: str = ""
    weight: float = Field(default=1.0, gt=0)
    """Relative share of the requests."""

    def headers(self, tenant_header: str) -> dict[str, str]:
        """The request headers of the objective, without those at their default."""
        headers = {"x-slo-ms": f"{self.deadline_ms:g}"}
        if self.ttft_ms:
            headers["x-ttft-ms"] = f"{self.ttft_ms:g}"
        if self.min_quality > 0:
            headers["x-min-quality"] = f"{self.min_quality:g}"
        if self.priority:
            headers["x-priority"] = str(self.priority)
        if self.tenant:
            headers[tenant_header] = self.tenant
        return headers


SloClasses = dict[str, WeightedSloClass]
"""SLO classes by name."""


def slo_classes(mix: str, slo_ms: float, ttft_ms: float = 0.0) -> SloClasses:
    """The classes of a mix, or one class with these deadlines for no mix. Raises SetupError."""
    if mix:
        return read_slo_classes(mix)
    if not 0 < slo_ms <= 3_600_000:
        raise SetupError(f"--slo-ms must be above 0 and at most 3600000, not {slo_ms:g}")
    if not 0 <= ttft_ms <= 3_600_000:
        raise SetupError(f"--ttft-ms must be from 0 to 3600000, not {ttft_ms:g}")
    return {"all": WeightedSloClass(deadline_ms=slo_ms, ttft_ms=ttft_ms)}


def read_slo_classes(text: str) -> SloClasses:
    """Classes by name, from JSON or from a JSON file. Raises SetupError.

    Example: {"interactive": {"deadline_ms": 200, "min_quality": 0.95, "priority": 1, "tenant": "a",
    "weight": 3}}.
    """
    try:
        raw = text if text.lstrip().startswith("{") else Path(text).read_text()
        classes = TypeAdapter(SloClasses).validate_json(raw)
    except OSError as error:
        raise SetupError(f"cannot read the mix {text}: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        location = ".".join(str(part) for part in first["loc"]) or "the text"
        raise SetupError(f"the mix is invalid at {location}: {first['msg']}") from error
    if not classes:
        raise SetupError("the mix has no SLO class; add at least one")
    return classes


@dataclass(frozen=True, slots=True)
class PlannedRequests:
    """All requests of a run, in the order of sending."""

    at: NDArray[np.float64]
    """(N,) scheduled send times, seconds from the start."""
    slo_class: NDArray[np.int64]
    """(N,) index of the SLO class."""
    image: NDArray[np.int64]
    """(N,) index of the image in the catalogue."""

    def __len__(self) -> int:
        return len(self.at)


def plan_requests(
    at: NDArray[np.float64], weights: Sequence[float], images: int, zipf: float, seed: int
) -> PlannedRequests:
    """Draw an SLO class and an image for each send time; the same arguments give the same result.

    Raises SetupError if the schedule is empty or has more than MAX_REQUESTS requests.
    """
    if not 0 < len(at) <= MAX_REQUESTS:
        raise SetupError(f"the schedule has {len(at)} requests; a run sends 1 to {MAX_REQUESTS}")
    if not 0 <= zipf <= 10:
        raise SetupError(f"--zipf must be from 0 to 10, not {zipf:g}")
    random = np.random.default_rng([seed, 1])  # independent of the generator of the schedule
    shares = np.asarray(weights) / np.sum(weights)
    slo_class = random.choice(len(shares), len(at), p=shares)
    return PlannedRequests(at, slo_class, random.choice(images, len(at), p=zipf_shares(images, zipf)))


def zipf_shares(images: int, zipf: float) -> NDArray[np.float64]:
    """(images,) probability of each image: proportional to k^-zipf for rank k; equal for zipf 0."""
    share = np.arange(1, images + 1, dtype=np.float64) ** -zipf
    return np.asarray(share / share.sum(), np.float64)
