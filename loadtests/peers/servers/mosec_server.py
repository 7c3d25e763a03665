"""mosec: dynamic batches in a Rust front end, with a bounded queue and a request timeout.

`max_batch_size` and `max_wait_time` (https://mosecorg.github.io/mosec/reference/interface.html): the wait
time is the shortest, 1 ms. Requests over `--capacity` get 429, and requests over `--timeout` get 408
(https://mosecorg.github.io/mosec/reference/arguments.html). Both are set through MOSEC_ variables.
"""

import os

import orjson
from mosec import Server, Worker  # type: ignore[import-not-found]

from foveate.gateway.media.image import Pixels
from loadtests.peers.config import PeerConfig
from loadtests.peers.inference import PeerAnswer, PeerInference


class MosecClassifier(Worker):  # type: ignore[misc]
    """A worker that decodes, classifies batches and encodes the answers."""

    def __init__(self) -> None:
        self.inference = PeerInference(PeerConfig.read())

    def deserialize(self, data: bytes) -> Pixels:
        """Decode the JPEG."""
        return self.inference.decode(data)

    def forward(self, data: list[Pixels] | Pixels) -> list[PeerAnswer] | PeerAnswer:
        """Classify a batch, or one image if batching is off."""
        if isinstance(data, list):
            return self.inference.classify(data)
        return self.inference.classify([data])[0]

    def serialize(self, data: PeerAnswer) -> bytes:
        """Encode the answer as JSON."""
        return orjson.dumps(data)


if __name__ == "__main__":
    config = PeerConfig.read()
    os.environ |= {
        "MOSEC_ADDRESS": "127.0.0.1",
        "MOSEC_PORT": str(config.port),
        "MOSEC_CAPACITY": str(config.capacity),
        "MOSEC_TIMEOUT": str(int(config.slo_ms)),
        "MOSEC_LOG_LEVEL": "warning",
    }
    server = Server()
    # This timeout stops the process of a forward that hangs; it does not affect normal requests.
    server.append_worker(
        MosecClassifier, max_batch_size=config.batch, max_wait_time=1, timeout=60, route="/classify"
    )
    server.run()
