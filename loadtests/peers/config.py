"""What a server is told, and what it works out from that: passed through the environment."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from foveate.core.plan import Precision

VARIABLE = "PEER_JOB"
DEADLINE_SHARE = 0.85
"""Share of the promise that may be planned for; the rest is for what is not decode and forward."""
MAX_BATCH_SIZE = 8
"""Larger batches are no faster on a processor, and longer to wait for."""


@dataclass(frozen=True, slots=True)
class PeerConfig:
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
        return max(1, int(DEADLINE_SHARE * self.rate * self.slo_ms / 1e3))

    @property
    def batch(self) -> int:
        """Pictures in a batch at most: one waits for the batch before, then for its own."""
        return max(1, min(MAX_BATCH_SIZE, self.capacity // 2))

    @property
    def max_wait_ms(self) -> float:
        """Longest wait after which a batch of that size still ends within the promise."""
        return max(1.0, DEADLINE_SHARE * self.slo_ms - 1e3 * self.batch / self.rate)

    @classmethod
    def read(cls, environment: Mapping[str, str] = os.environ) -> "Job":
        return cls(**json.loads(environment[VARIABLE]))

    def environment(self) -> dict[str, str]:
        return {VARIABLE: json.dumps(asdict(self))}
