"""The real gateway and engine around a model that does nothing: `python -m loadtests.noop PORT [ray]`."""

import sys
import time
from collections.abc import Sequence
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
    """Takes the bytes as they came and always answers the same."""

    max_batch = 32

    def __init__(self, waits_s: float = 0.0) -> None:
        """waits_s: seconds of a batch, in which the processor does something else."""
        self.waits_s = waits_s
        rung = Rung(FULL, 0.0, 1, 1.0, {1: waits_s, 32: waits_s} if waits_s else None)
        self.card = ModelCard("noop", "does nothing", FULL, ("a", "b", "c", "d", "e"), 0, None, (rung,))

    def check(self, plan: Plan) -> None:
        pass

    def stack(self, media: Sequence[Any], plan: Plan) -> int:
        return len(media)

    def run(self, batch: int, plan: Plan) -> list[Result | Exception]:
        if self.waits_s:
            time.sleep(self.waits_s)
        return [ANSWER] * batch


if __name__ == "__main__":
    settings = Settings(port=int(sys.argv[1]), models=("noop",))
    if sys.argv[2:] == ["ray"]:
        from foveate.gateway import on_ray

        on_ray.serve(settings, print, makes=[NoopRunner])
    else:
        metrics = Metrics()
        cluster = LocalCluster([NoopRunner], metrics)
        server(create_app(cluster, settings, metrics), cluster, settings).run()
