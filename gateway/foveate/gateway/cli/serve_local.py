"""`foveate serve` in one process, with the gateway, the engines and the models."""

from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Any

from foveate.cluster.local import LocalCluster
from foveate.core.heap import limit_heap, trim_heap
from foveate.core.metrics import Metrics
from foveate.core.settings import Settings
from foveate.engine.hang import HangLimits
from foveate.estimation.host_load import HostLoadMonitor
from foveate.gateway.app import create_app
from foveate.gateway.server import end_leftover_threads, freeze_gc_heap, server
from foveate.scheduling.fifo import Fifo
from foveate.scheduling.slo_policy import SloPolicy

MIN_JOIN_S = 1.0
"""Seconds that threads have to end after the server, even where the drain time is over."""


def serve(settings: Settings, tell: Callable[[str], None], load: Callable[[str, Settings], Any]) -> None:
    """Serve until a signal arrives and all admitted requests have ended.

    tell: prints one line for each model. load: creates the runner of a model's name.
    Exits the process with status 1 if work does not end. Raises SetupError.
    """
    limit_heap()
    metrics = Metrics(settings.class_deadlines_s)
    factories = [partial(load, name, settings) for name in settings.models]
    cluster = LocalCluster(
        factories, metrics, settings.queue_items, settings.queue_bytes,
        SloPolicy if settings.policy == "slo" else Fifo, settings.default_deadline_s,
        HostLoadMonitor(settings.decode_threads),
        HangLimits(settings.hang_timeout_s, settings.hang_restart_s),
        settings.chat_feature_bytes, settings.chat_prefix_bytes,
    )  # fmt: skip
    application = create_app(cluster, settings, metrics)
    for card in cluster.cards().values():
        tell(f"{card.full}: {card.description}")
    web = server(application, cluster, settings)
    freeze_gc_heap()
    trim_heap()
    web.run()
    end_leftover_threads(max(MIN_JOIN_S, web.drain_until - monotonic()))
