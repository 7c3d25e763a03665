"""Detects work on a device that does not end, such as a forward that hangs."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from foveate.core.errors import DeviceHung
from foveate.core.plan import Plan
from foveate.core.settings import DEFAULTS

log = logging.getLogger(__name__)

WorkKind = Literal["batch", "explanation", "stacking", "warm-up", "encoding", "prefill", "decoding step"]

HANG_FACTOR = 10.0
"""Work hangs once it has taken this many times its predicted time. A prediction may be off by a few times:
the first batch of a shape prepares its kernels, and a clip may be costlier than the one that was timed."""
RESTART_FACTOR = 40.0
"""Work is lost once it has taken this many times its predicted time."""
STALL_S = 1.0
"""A timer that is this late shows that the whole process stood still, as in a paused container."""
RETRY_AFTER_S = 5.0
"""Seconds after which a client may retry a request that was refused because the device hangs."""


@dataclass(frozen=True, slots=True)
class HangLimits:
    """The shortest times after which work counts as hanging, and as lost. Long predictions extend them."""

    hang_s: float = DEFAULTS["hang_timeout_s"]
    """From then on, requests that wait are refused."""
    restart_s: float = DEFAULTS["hang_restart_s"]
    """From then on, only a restart of the process helps."""

    def of(self, predicted_s: float) -> tuple[float, float]:
        """Seconds until work of this predicted time hangs, and until it is lost."""
        hang_s = max(self.hang_s, HANG_FACTOR * predicted_s)
        return hang_s, max(self.restart_s, RESTART_FACTOR * predicted_s, hang_s)


@dataclass(slots=True, eq=False)
class DeviceWork:
    """One piece of work that a thread does for one model, such as the forward of a batch."""

    model: str
    plan: Plan
    size: int
    """Number of items."""
    predicted_s: float
    kind: WorkKind = "batch"
    on_change: Callable[["DeviceWork"], None] = lambda _: None
    """Called on the event loop when the work begins to hang, and when it is lost."""
    state: Literal["running", "hanging", "lost"] = "running"
    began: float = field(default=0.0)
    """Time of the event loop, in seconds."""

    def describe(self, now: float) -> str:
        """One clause for logs and probes. now: time of the event loop, in seconds."""
        return (
            f"a {self.kind} of {self.size} for {self.model} under {self.plan} "
            f"has been running for {now - self.began:.0f} s"
        )


class HangDetector:
    """Watches the work of one device and of the threads that prepare its batches.

    Each work has two limits. After the first one it hangs: `error` refuses requests until it ends. After the
    second one it is lost: the process has to be restarted. For the event loop's thread only.
    """

    def __init__(self, limits: HangLimits, on_hang: Callable[[DeviceHung], None]) -> None:
        """on_hang: called when work begins to hang, with the error for the requests that wait."""
        self.limits, self._on_hang = limits, on_hang
        self._running: set[DeviceWork] = set()
        self._hanging: dict[DeviceWork, None] = {}
        self._responds = asyncio.Event()
        self._responds.set()

    @property
    def hangs(self) -> bool:
        """Work hangs or is lost."""
        return bool(self._hanging)

    @property
    def lost(self) -> bool:
        """Work is lost: only a restart helps."""
        return any(work.state == "lost" for work in self._hanging)

    def count(self, model: str) -> int:
        """How much work of a model hangs."""
        return sum(work.model == model for work in self._hanging)

    def check(self) -> None:
        """Raises DeviceHung while work hangs."""
        if self._hanging:
            raise self._error(next(iter(self._hanging)))

    async def wait_responds(self) -> None:
        """Return once no work hangs."""
        await self._responds.wait()

    def describe(self, *, hanging_only: bool = False) -> str:
        """The work that runs as one clause, the work that hangs first; empty if there is none."""
        now = asyncio.get_running_loop().time()
        works = self._hanging if hanging_only else {**self._hanging, **dict.fromkeys(self._running)}
        return "; ".join(work.describe(now) for work in works)

    @contextmanager
    def watch(self, work: DeviceWork) -> Iterator[None]:
        """Watch a piece of work from now to the end of the context."""
        loop = asyncio.get_running_loop()
        work.began = loop.time()
        limit = _Limit(self, work)
        self._running.add(work)
        ended = True
        try:
            yield
        except asyncio.CancelledError:
            ended = False  # the thread works on: only the wait for it has ended
            raise
        finally:
            limit.timer.cancel()
            self._running.discard(work)
            if work in self._hanging:
                del self._hanging[work]
                if not self._hanging:
                    self._responds.set()
                if ended:
                    log.warning("no longer hanging: %s", work.describe(loop.time()))

    def begin_hang(self, work: DeviceWork) -> None:
        """The first limit of a work has passed."""
        work.state = "hanging"
        self._hanging[work] = None
        self._responds.clear()
        now = asyncio.get_running_loop().time()
        log.error("the device hangs: %s; requests are refused until it ends", work.describe(now))
        work.on_change(work)
        self._on_hang(self._error(work))

    def give_up(self, work: DeviceWork) -> None:
        """The second limit of a work has passed."""
        work.state = "lost"
        now = asyncio.get_running_loop().time()
        log.critical("the device is lost: %s; restart the server", work.describe(now))
        work.on_change(work)

    @staticmethod
    def _error(work: DeviceWork) -> DeviceHung:
        return DeviceHung(
            f"the device does not respond: a {work.kind} of {work.model} takes far too long; retry later",
            RETRY_AFTER_S,
        )


class _Limit:
    """Waits for the limits of one work, one after the other."""

    def __init__(self, detector: HangDetector, work: DeviceWork) -> None:
        self.detector, self.work = detector, work
        self.hang_s, self.restart_s = detector.limits.of(work.predicted_s)
        self.timer = asyncio.get_running_loop().call_at(work.began + self.hang_s, self._passed)

    def _passed(self) -> None:
        loop = asyncio.get_running_loop()
        now, due = loop.time(), self.timer.when()
        if now - due > STALL_S:
            # The thread of the work stood still for as long as the event loop did: wait once more.
            self.timer = loop.call_at(now + self.hang_s, self._passed)
        elif self.work.state == "running":
            self.timer = loop.call_at(due + self.restart_s - self.hang_s, self._passed)
            self.detector.begin_hang(self.work)
        else:
            self.detector.give_up(self.work)
