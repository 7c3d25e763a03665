"""The gateway and the engine with a model that does nothing: `python -m loadtests.noop PORT [--ray]`."""

import argparse
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from foveate.cluster.local import LocalCluster
from foveate.core.metrics import Metrics
from foveate.core.model import ModelCard, Rung
from foveate.core.outcome import Result
from foveate.core.plan import Plan
from foveate.core.settings import Settings
from foveate.gateway.app import create_app
from foveate.gateway.server import server

FULL = Plan("noop", 224)
ANSWER = Result(np.array([0.5, 0.25, 0.125, 0.0625, 0.0625], np.float32), 1, 1, 0.0)


class NoopRunner:
    """A Runner that accepts any bytes and returns a constant answer."""

    def __init__(self, wait_s: float = 0.0, max_batch: int = 32) -> None:
        """wait_s: seconds that a batch sleeps, without using the processor."""
        self.wait_s, self.max_batch = wait_s, max_batch
        rung = Rung(FULL, 0.0, 1, 1.0, {1: wait_s, max_batch: wait_s} if wait_s else None)
        self.card = ModelCard("noop", "does nothing", FULL, ("a", "b", "c", "d", "e"), 0, None, (rung,))

    def check(self, plan: Plan) -> None:
        """Accepts every plan."""

    def stack(self, media: Sequence[Any], plan: Plan) -> int:
        """The batch is its own size."""
        return len(media)

    def run(self, batch: int, plan: Plan) -> list[Result | Exception]:
        """Sleep for wait_s and answer each item with ANSWER."""
        if self.wait_s:
            time.sleep(self.wait_s)
        return [ANSWER] * batch


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m loadtests.noop", description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("--ray", action="store_true", help="run on Ray Serve")
    parser.add_argument("--replicas", type=int, default=1, help="number of Ray replicas")
    parser.add_argument("--waits-ms", type=float, default=0.0, help="milliseconds that a batch sleeps")
    parser.add_argument("--max-batch", type=int, default=32)
    options = parser.parse_args()
    settings = Settings(port=options.port, models=("noop",), replicas=options.replicas)
    make = partial(NoopRunner, options.waits_ms / 1e3, options.max_batch)
    if options.ray:
        from foveate.gateway.cli import serve_ray

        serve_ray.serve(settings, print, [make])
        return
    metrics = Metrics()
    cluster = LocalCluster([make], metrics)
    server(create_app(cluster, settings, metrics), cluster, settings).run()


if __name__ == "__main__":
    main()
