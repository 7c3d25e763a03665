"""The configuration of one server under test, passed to it through the environment."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from foveate.core.plan import Precision

VARIABLE = "PEER_CONFIG"
DEADLINE_SHARE = 0.85
"""Share of the deadline that a server may plan for; the rest is for work besides decode and forward."""
MAX_BATCH_SIZE = 8
"""Larger batches have no higher throughput on a CPU, and a longer latency."""


@dataclass(frozen=True, slots=True)
class PeerConfig:
    """One server, to be tuned to one deadline. The limits follow from Little's law."""

    weights: str
    """A .safetensors file."""
    precision: Precision
    port: int
    slo_ms: float
    """The deadline."""
    rate: float
    """Images per second that this server manages on this machine."""
    token: str = ""
    """Identifies the processes of this server."""

    @property
    def capacity(self) -> int:
        """Maximum requests in the server: as many as it answers within the deadline. It refuses more."""
        return max(1, int(DEADLINE_SHARE * self.rate * self.slo_ms / 1e3))

    @property
    def batch(self) -> int:
        """Maximum batch size: a request waits for the previous batch and then for its own."""
        return max(1, min(MAX_BATCH_SIZE, self.capacity // 2))

    @property
    def max_wait_ms(self) -> float:
        """Maximum queueing time after which a batch of that size still ends within the deadline."""
        return max(1.0, DEADLINE_SHARE * self.slo_ms - 1e3 * self.batch / self.rate)

    @classmethod
    def read(cls, environment: Mapping[str, str] = os.environ) -> "PeerConfig":
        """The configuration in the environment. Raises KeyError if there is none."""
        return cls(**json.loads(environment[VARIABLE]))

    def environment(self) -> dict[str, str]:
        """The environment variable that holds the configuration."""
        return {VARIABLE: json.dumps(asdict(self))}
