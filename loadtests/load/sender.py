"""Open-loop sending: every request leaves at its scheduled time, whatever became of those before it."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import nan

import gevent
from gevent.pool import Group

from foveate.core.errors import SetupError
from loadtests.load.answers import UNREADABLE
from loadtests.load.connection import Broken, Connection, Pool
from loadtests.load.records import Exchange
from loadtests.load.target import Target, request_bytes

SETTLING_S = 30.0
"""A server may have this long to get done with what an earlier run has left behind."""
BUSY = (429, 503, 504)


@dataclass(frozen=True, slots=True)
class Parcel:
    """One request to be; head and body are joined only as it is sent."""

    index: int
    at: float
    """Scheduled, in seconds from the start."""
    head: bytes
    body: bytes


class Sender:
    """One greenlet a request, so nobody waits for anybody: a closed loop would slow down with the server
    and leave out just the requests that would have fared worst (coordinated omission)."""

    def __init__(self, target: Target, patience_s: float, ended: Callable[[Exchange], None]) -> None:
        """`ended` is told of each exchange once; what has no answer `patience_s` after its scheduled time
        is given up."""
        self.pool, self.patience_s, self.ended = Pool(target), patience_s, ended
        self.started = 0.0

    def send_all(self, parcels: Sequence[Parcel]) -> None:
        """Send each at its time; return when all have ended."""
        group = Group()
        self.started = time.perf_counter()
        try:
            for parcel in parcels:
                early = parcel.at - self._now()
                if early > 0:
                    gevent.sleep(early)
                group.start(gevent.Greenlet(self._send, parcel))
            group.join()
        finally:
            group.kill()
            self.pool.close()

    def _now(self) -> float:
        return time.perf_counter() - self.started

    def _send(self, parcel: Parcel) -> None:
        sent = self._now()
        left = parcel.at + self.patience_s - sent
        if left > 0:
            status, body, problem, finished = self._exchange(request_bytes(parcel.head, parcel.body), left)
        else:
            status, body, problem, finished = 0, b"", "the generator was too late to send it", nan
        self.ended(Exchange(parcel.index, parcel.at, sent, finished, status, body, problem))

    def _exchange(self, request: bytes, left_s: float) -> tuple[int, bytes, str, float]:
        """Status, body, what went wrong, and when it was over; 0 and NaN where they never came."""
        connection: Connection | None = None
        try:
            with gevent.Timeout(left_s):
                connection = self.pool.take()
                status, body, keep = connection.exchange(request)
            finished = self._now()
            if keep:
                self.pool.give(connection)
                connection = None
            return status, body, "", finished
        except gevent.Timeout:
            return 0, b"", f"no answer within {self.patience_s:g} s", nan
        except (Broken, OSError) as error:
            return 0, b"", str(error), self._now()
        finally:
            if connection is not None:
                connection.close()


def probe(target: Target, parcel: Parcel, patience_s: float = SETTLING_S) -> None:
    """Wait for one good answer, so that a run begins on a server that is there, is the one that is meant,
    and is done with what came before. Raises SetupError with one sentence."""
    until = time.monotonic() + patience_s
    while (exchange := _once(target, parcel, patience_s)).status in BUSY and time.monotonic() < until:
        gevent.sleep(0.2)
    start = exchange.body[:200].decode(errors="replace")
    if exchange.status == 0:
        raise SetupError(f"no server answers at {target.url}: {exchange.problem}")
    if exchange.status != 200:
        raise SetupError(f"{target.url} answered {exchange.status} to the first picture: {start}")
    try:
        target.parse(exchange.body)
    except UNREADABLE as error:
        raise SetupError(f"{target.url} answered what the parser cannot read: {start}") from error


def _once(target: Target, parcel: Parcel, patience_s: float) -> Exchange:
    seen: list[Exchange] = []
    Sender(target, patience_s, seen.append).send_all([parcel])
    return seen[0]
