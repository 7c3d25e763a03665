"""What a server is told, and what it works out from that: passed through the environment."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from foveate.core.plan import Precision

VARIABLE = "PEER_JOB"
MARGIN = 0.85
"""Share of the promise that may be planned for; the rest is for what is not decode and forward."""
MOST_IN_BATCH = 8
"""Larger batches are no faster on a processor, and longer to wait for."""


@dataclass(frozen=True, slots=True)
class Job:
    """One server, to be tuned to one promise. The numbers below follow from Little's law."""

    weights: str
    """A .safetensors file."""
    precision: Precision
    port: int
    slo_ms: float
    rate: float
    """Pictures a second that this server manages on this machine."""
    token: str = ""
    """Tells the processes of this server from all others."""

    @property
    def capacity(self) -> int:
        """Requests inside at most: what can be answered within the promise. More are refused."""
        return max(1, int(MARGIN * self.rate * self.slo_ms / 1e3))

    @property
    def batch(self) -> int:
        """Pictures in a batch at most: one waits for the batch before, then for its own."""
        return max(1, min(MOST_IN_BATCH, self.capacity // 2))

    @property
    def patience_ms(self) -> float:
        """Longest wait after which a batch of that size still ends within the promise."""
        return max(1.0, MARGIN * self.slo_ms - 1e3 * self.batch / self.rate)

    @classmethod
    def read(cls, environment: Mapping[str, str] = os.environ) -> "Job":
        return cls(**json.loads(environment[VARIABLE]))

    def environment(self) -> dict[str, str]:
        return {VARIABLE: json.dumps(asdict(self))}
