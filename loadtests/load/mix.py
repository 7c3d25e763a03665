"""What is asked for: which promise each request carries, and which picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from foveate.core.errors import SetupError

MOST_REQUESTS = 200_000
"""In one run; more belongs on the simulator."""


class Promise(BaseModel):
    """What one class of requests is promised, and its share of the traffic."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    deadline_ms: float = Field(gt=0, le=3_600_000)
    min_quality: float = Field(default=0.0, ge=0, le=1)
    priority: int = Field(default=0, ge=-9, le=9)
    tenant: str = ""
    weight: float = Field(default=1.0, gt=0)

    def headers(self, tenant_header: str) -> dict[str, str]:
        """How the server is told; what is at its default is left out."""
        said = {"x-slo-ms": f"{self.deadline_ms:g}"}
        if self.min_quality > 0:
            said["x-min-quality"] = f"{self.min_quality:g}"
        if self.priority:
            said["x-priority"] = str(self.priority)
        if self.tenant:
            said[tenant_header] = self.tenant
        return said


Promises = dict[str, Promise]


def promises(mix: str, slo_ms: float) -> Promises:
    """The classes of a mix; where it is empty, one class with that deadline. Raises SetupError."""
    if mix:
        return read_promises(mix)
    if not 0 < slo_ms <= 3_600_000:
        raise SetupError(f"a deadline is above 0 and at most 3600000 ms, not {slo_ms:g}")
    return {"all": Promise(deadline_ms=slo_ms)}


def read_promises(text: str) -> Promises:
    """Classes by name, from JSON or from a file that holds it: {"interactive": {"deadline_ms": 200,
    "min_quality": 0.95, "priority": 1, "tenant": "a", "weight": 3}}. Raises SetupError."""
    try:
        raw = text if text.lstrip().startswith("{") else Path(text).read_text()
        found = TypeAdapter(Promises).validate_json(raw)
    except OSError as error:
        raise SetupError(f"cannot read the mix {text}: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the text"
        raise SetupError(f"the mix makes no sense at {where}: {first['msg']}") from error
    if not found:
        raise SetupError("the mix names no class of requests")
    return found


@dataclass(frozen=True, slots=True)
class Offers:
    """Every request of a run before it begins, in the order of sending."""

    at: NDArray[np.float64]
    """(N,) scheduled send times, seconds from the start."""
    promise: NDArray[np.int64]
    """(N,) which class each belongs to."""
    picture: NDArray[np.int64]
    """(N,) which picture of the catalogue each carries."""

    def __len__(self) -> int:
        return len(self.at)


def draw(at: NDArray[np.float64], weights: Sequence[float], pictures: int, zipf: float, seed: int) -> Offers:
    """A class and a picture for each send time; the same arguments give the same ones. Raises SetupError
    where there is nothing to send, or too much."""
    if not 0 < len(at) <= MOST_REQUESTS:
        raise SetupError(f"the schedule holds {len(at)} requests; a run sends 1 to {MOST_REQUESTS}")
    if not 0 <= zipf <= 10:
        raise SetupError(f"a Zipf exponent is a number from 0 to 10, not {zipf:g}")
    random = np.random.default_rng([seed, 1])  # a stream of its own, apart from the schedule's
    shares = np.asarray(weights) / np.sum(weights)
    promise = random.choice(len(shares), len(at), p=shares)
    return Offers(at, promise, random.choice(pictures, len(at), p=popularity(pictures, zipf)))


def popularity(pictures: int, zipf: float) -> NDArray[np.float64]:
    """(pictures,) how likely each is: rank k as k^-zipf; 0 makes all alike."""
    share = np.arange(1, pictures + 1, dtype=np.float64) ** -zipf
    return np.asarray(share / share.sum(), np.float64)
