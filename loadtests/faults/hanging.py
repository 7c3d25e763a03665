"""A server whose forward can hang: `python -m loadtests.faults.hanging --port PORT`.

Media that begin with HANG make the forward wait for ever; all other media are answered at once.
"""

import argparse
import os
import threading
from collections.abc import Sequence
from functools import partial
from typing import Any

from foveate.cluster.local import LocalCluster
from foveate.core.metrics import Metrics
from foveate.core.outcome import Result
from foveate.core.plan import Plan
from foveate.core.settings import Settings
from foveate.gateway.app import create_app
from foveate.gateway.server import server
from loadtests.noop import ANSWER, NoopRunner

HANG = b"hang"


class HangingRunner(NoopRunner):
    """A Runner that accepts any bytes, and never returns from a batch with media that begin with HANG."""

    def stack(self, media: Sequence[Any], plan: Plan) -> Any:
        """The media."""
        return list(media)

    def run(self, batch: Any, plan: Plan) -> list[Result | Exception]:
        """Answer each item with ANSWER, or hang."""
        if any(bytes(item[: len(HANG)]) == HANG for item in batch):
            threading.Event().wait()
        super().run(len(batch), plan)
        return [ANSWER] * len(batch)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m loadtests.faults.hanging", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--waits-ms", type=float, default=20.0, help="milliseconds of a batch")
    options = parser.parse_args()
    settings, metrics = Settings(port=options.port, models=("noop",)), Metrics()
    cluster = LocalCluster([partial(HangingRunner, options.waits_ms / 1e3)], metrics)
    web = server(create_app(cluster, settings, metrics), cluster, settings)
    web.run()
    if not web.finished:
        os._exit(1)  # as `foveate serve` does: a forward that hangs would keep the process


if __name__ == "__main__":
    main()
