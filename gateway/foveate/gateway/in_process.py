"""`foveate serve` in one process: gateway, engines and models."""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

from foveate.cluster.local import LocalCluster
from foveate.core.metrics import Metrics
from foveate.core.settings import Settings
from foveate.engine.fifo import Fifo
from foveate.engine.host import Host
from foveate.engine.promise import Promise
from foveate.engine.terms import Terms
from foveate.gateway.app import create_app
from foveate.gateway.server import leave_alone, server


def serve(settings: Settings, tell: Callable[[str], None], load: Callable[[str, Settings], Any]) -> None:
    """Until a signal comes and what was admitted is done. `tell` gets what is served, line by line."""
    metrics = Metrics()
    factories = [partial(load, name, settings) for name in settings.models]
    cluster = LocalCluster(
        factories, metrics, settings.queue_items, settings.queue_bytes,
        Promise if settings.policy == "promise" else Fifo, Terms(settings.patience_s),
        Host(settings.decode_threads),
    )  # fmt: skip
    application = create_app(cluster, settings, metrics)
    for card in cluster.cards().values():
        tell(f"{card.full}: {card.description}")
    web = server(application, cluster, settings)
    leave_alone()
    web.run()
    if not web.finished:
        os._exit(1)  # a forward that is stuck in its thread would keep the process for ever
