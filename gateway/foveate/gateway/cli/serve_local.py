"""`foveate serve` in one process, with the gateway, the engines and the models."""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

from foveate.cluster.local import LocalCluster
from foveate.core.heap import limit_heap, trim_heap
from foveate.core.metrics import Metrics
from foveate.core.settings import Settings
from foveate.estimation.host_load import HostLoadMonitor
from foveate.gateway.app import create_app
from foveate.gateway.server import freeze_gc_heap, server
from foveate.scheduling.fifo import Fifo
from foveate.scheduling.slo_policy import SloPolicy


def serve(settings: Settings, tell: Callable[[str], None], load: Callable[[str, Settings], Any]) -> None:
    """Serve until a signal arrives and all admitted requests have ended.

    tell: prints one line for each model. load: creates the runner of a model's name.
    Exits the process with status 1 if a forward does not end. Raises SetupError.
    """
    limit_heap()
    metrics = Metrics()
    factories = [partial(load, name, settings) for name in settings.models]
    cluster = LocalCluster(
        factories, metrics, settings.queue_items, settings.queue_bytes,
        SloPolicy if settings.policy == "slo" else Fifo, settings.default_deadline_s,
        HostLoadMonitor(settings.decode_threads),
    )  # fmt: skip
    application = create_app(cluster, settings, metrics)
    for card in cluster.cards().values():
        tell(f"{card.full}: {card.description}")
    web = server(application, cluster, settings)
    freeze_gc_heap()
    trim_heap()
    web.run()
    if not web.finished:
        os._exit(1)  # a forward that does not end would keep its thread, and with it the process, for ever
