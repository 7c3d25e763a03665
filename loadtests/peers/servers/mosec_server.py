"""mosec: dynamic batches in a Rust front, with a bounded queue and a request timeout.

`max_batch_size` and `max_wait_time` (https://mosecorg.github.io/mosec/reference/interface.html): the shortest
window there is, 1 ms. `--capacity` answers 429 and `--timeout` 408 to what is over
(https://mosecorg.github.io/mosec/reference/arguments.html); both are set through MOSEC_ variables.
"""

import os

import orjson
from mosec import PeerServer, Worker  # type: ignore[import-not-found]

from loadtests.peers.config import PeerConfig
from loadtests.peers.inference import Answer, PeerInference, Pixels


class Classifier(Worker):  # type: ignore[misc]
    def __init__(self) -> None:
        self.work = PeerInference(PeerConfig.read())

    def deserialize(self, data: bytes) -> Pixels:
        return self.work.decode(data)

    def forward(self, data: list[Pixels] | Pixels) -> list[Answer] | Answer:
        if isinstance(data, list):
            return self.work.classify(data)
        return self.work.classify([data])[0]

    def serialize(self, data: Answer) -> bytes:
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
    server = PeerServer()
    # This other timeout ends the process of a forward that hangs; none does.
    server.append_worker(
        Classifier, max_batch_size=config.batch, max_wait_time=1, timeout=60, route="/classify"
    )
    server.run()
