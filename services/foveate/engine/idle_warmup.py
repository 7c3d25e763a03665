"""Warms up the rest of a model's ladder, one batch at a time, while no request needs the device."""

import asyncio
import logging
import math

from prometheus_client import Gauge

from foveate.core.errors import DeviceHung
from foveate.core.heap import trim_heap
from foveate.engine.backlog import RECENT_S, Backlog
from foveate.engine.device import DeviceExecutor
from foveate.engine.hang import DeviceWork
from foveate.engine.runner import Warmup
from foveate.estimation.host_load import HostLoadMonitor
from foveate.estimation.threads import ThreadSelector
from foveate.scheduling.device_demand import NO_DEMAND, DeviceDemand

log = logging.getLogger(__name__)

QUIET_S = 0.02
"""For this long there must be no unfinished request before a batch runs, and then it is looked at again."""
SETUP_S, SETUP_DECAY = 0.03, 0.9
"""Seconds that the first batch of a plan and size is assumed to take besides its forward, until one was
slower; and the share of the slowest that counts after each further batch. A busy machine takes many times as
long."""
MAX_PIECE_S = 0.1
"""Longest batch, in predicted seconds, that runs while requests arrive: the next one waits for its end."""


class IdleWarmup:
    """The warm-up of one model. A `DeviceTenant` that comes after every request.

    For the event loop's thread only. Requests of all models on the device come first: a batch begins only if
    the device is free, no request is unfinished or being decoded, and either the batch is short or no request
    has arrived for a while.
    """

    def __init__(
        self,
        warmup: Warmup | None,
        latency: ThreadSelector,
        backlog: Backlog,
        device: DeviceExecutor,
        host_load: HostLoadMonitor,
        ratio: Gauge,
    ) -> None:
        """warmup: None for a runner without one; latency: learns which rungs are warm; ratio: the metric of
        what is done."""
        self.warmup, self.latency, self.backlog = warmup, latency, backlog
        self.device, self.host_load = device, host_load
        ratio.set_function(lambda: 1.0 if warmup is None else warmup.ratio)
        self._setup_s = SETUP_S
        self._task: asyncio.Task[None] | None = None

    @property
    def virtual_deadline(self) -> float:
        """Infinite: a request always comes first."""
        return math.inf

    @property
    def demand(self) -> DeviceDemand:
        """None: requests of other models are not degraded for it."""
        return NO_DEMAND

    def refuse_waiting(self, error: DeviceHung) -> None:
        """Do nothing: no request waits for a warm-up."""

    def start(self, name: str) -> None:
        """Start on the running event loop. name: of the model, for the log."""
        if self.warmup is not None:
            self._task = asyncio.create_task(self._run(self.warmup, name), name=f"warm-up-{name}")

    def stop(self) -> None:
        """Stop before the next batch. One that runs holds the device until it ends, and is still watched."""
        if self._task is not None:
            self._task.cancel()

    async def _run(self, warmup: Warmup, name: str) -> None:
        complete = True
        while (batch := warmup.next) is not None:
            forward_s = self.latency.predict(*batch)
            async with self.device.idle_turn:  # granted in order: the models take turns
                # No event tells that all is quiet: requests, decoding and the device would all have to set
                # it at every change, for a wait that ends once the ladder is warm.
                while not self._allowed(forward_s + self._setup_s):  # noqa: ASYNC110
                    await asyncio.sleep(QUIET_S)
                work = DeviceWork(name, *batch, forward_s, "warm-up")
                complete &= await asyncio.shield(self._run_or_skip(warmup, work))
        if complete:
            log.info("%s: all rungs are warm", name)
        await self.device.run(trim_heap)  # the warm-up freed large blocks between small ones

    async def _run_or_skip(self, warmup: Warmup, work: DeviceWork) -> bool:
        """Run the next batch. If it fails, skip the rest of its plan, and return False."""
        try:
            await self._run_next(warmup, work)
        except (Exception, SystemExit):  # a library of the model may call sys.exit
            # The plan would fail requests too. If it has never run, it stays cold, and others serve them.
            log.warning(
                "%s: the warm-up of %s failed; its other batches are left out",
                work.model, work.plan, exc_info=True,
            )  # fmt: skip
            warmup.skip(work.plan)
            return False
        return True

    def _allowed(self, predicted_s: float) -> bool:
        """Whether a batch of this length may begin now."""
        if not self.device.idle or self.backlog.unfinished or self.host_load.pending:
            return False
        quiet_s = self.device.clock() - self.device.last_batch_at
        return quiet_s >= RECENT_S or (quiet_s >= QUIET_S and predicted_s <= MAX_PIECE_S)

    async def _run_next(self, warmup: Warmup, work: DeviceWork) -> None:
        async with self.device.turn(self):
            self.device.set_busy(work.predicted_s + self._setup_s)
            started = self.device.clock()
            with self.device.hangs.watch(work):
                warmed = await self.device.run(warmup.run_next)
            setup_s = self.device.clock() - started - work.predicted_s
        self._setup_s = max(setup_s, SETUP_S, SETUP_DECAY * self._setup_s)
        if warmed is not None:
            self.latency.add_warm(warmed)
