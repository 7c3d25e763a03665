"""Open-loop sending: each request is sent at its scheduled time, independent of earlier answers."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import nan

import gevent
from gevent.pool import Group

from foveate.core.errors import SetupError
from loadtests.load.answers import UNREADABLE
from loadtests.load.chat_answers import StreamError
from loadtests.load.connection import Connection, ConnectionBroken, ConnectionPool
from loadtests.load.records import Exchange
from loadtests.load.target import Target, request_bytes

PROBE_TIMEOUT_S = 30.0
"""Seconds for a server to finish the work of an earlier run."""
BUSY = (429, 503, 504)


@dataclass(frozen=True, slots=True)
class ScheduledRequest:
    """One request of the schedule. Its bytes are joined only when it is sent, to save memory."""

    index: int
    at: float
    """The scheduled time in seconds from the start."""
    head: bytes
    body: bytes | Callable[[], bytes]
    """The body, or a function that makes it."""

    @property
    def data(self) -> bytes:
        """The bytes to send."""
        return request_bytes(self.head, self.body if isinstance(self.body, bytes) else self.body())


class Sender:
    """Sends each request in its own greenlet, so that no request waits for another.

    A closed loop would slow down with the server and would omit the requests with the worst latency
    (coordinated omission).
    """

    def __init__(self, target: Target, answer_timeout_s: float, on_end: Callable[[Exchange], None]) -> None:
        """`on_end` gets each exchange once. A request without an answer `answer_timeout_s` after its
        scheduled time is abandoned."""
        self.pool, self.answer_timeout_s, self.on_end = ConnectionPool(target), answer_timeout_s, on_end
        self.started = 0.0

    def send_all(self, requests: Sequence[ScheduledRequest]) -> None:
        """Send each request at its time; return when all have ended."""
        group = Group()
        self.started = time.perf_counter()
        try:
            for request in requests:
                early_s = request.at - self._now()
                if early_s > 0:
                    gevent.sleep(early_s)
                group.start(gevent.Greenlet(self._send, request))
            group.join()
        finally:
            group.kill()
            self.pool.close()

    def _now(self) -> float:
        return time.perf_counter() - self.started

    def _send(self, request: ScheduledRequest) -> None:
        sent = self._now()
        left_s = request.at + self.answer_timeout_s - sent
        if left_s > 0:
            exchange = self._exchange(request, sent, left_s)
        else:
            exchange = self._unanswered(request, sent, nan, "the generator was too late to send it")
        self.on_end(exchange)

    def _exchange(self, request: ScheduledRequest, sent: float, left_s: float) -> Exchange:
        """Send a request; without an answer the status is 0, after a timeout the end time is NaN."""
        connection: Connection | None = None
        try:
            with gevent.Timeout(left_s):
                connection = self.pool.acquire()
                reply = connection.exchange(request.data)
            ended = self._now()
            if reply.reusable:
                self.pool.release(connection)
                connection = None
            received = tuple((end, at - self.started) for end, at in reply.received)
            return Exchange(request.index, request.at, sent, ended, reply.status, reply.body, "", received)
        except gevent.Timeout:
            return self._unanswered(request, sent, nan, f"no answer within {self.answer_timeout_s:g} s")
        except (ConnectionBroken, OSError) as error:
            return self._unanswered(request, sent, self._now(), str(error))
        finally:
            if connection is not None:
                connection.close()

    @staticmethod
    def _unanswered(request: ScheduledRequest, sent: float, ended: float, problem: str) -> Exchange:
        return Exchange(request.index, request.at, sent, ended, 0, b"", problem)


def probe(target: Target, request: ScheduledRequest, timeout_s: float = PROBE_TIMEOUT_S) -> None:
    """Send a request until the server is not busy, and check that it answers with a readable answer.

    Raises SetupError with one sentence if there is no server, if it refuses the request, or if the parser
    cannot read the answer.
    """
    until = time.monotonic() + timeout_s
    while (exchange := _send_one(target, request, timeout_s)).status in BUSY and time.monotonic() < until:
        gevent.sleep(0.2)
    body_start = exchange.body[:200].decode(errors="replace")
    if exchange.status == 0:
        raise SetupError(f"no server answers at {target.url}: {exchange.problem}")
    if exchange.status != 200:
        raise SetupError(f"{target.url} answered {exchange.status} to the first request: {body_start}")
    try:
        target.parse(exchange.body)
    except StreamError as error:
        raise SetupError(f"{target.url} failed on the first request: {error.problem}") from error
    except UNREADABLE as error:
        raise SetupError(f"the parser cannot read the answer of {target.url}: {body_start}") from error


def _send_one(target: Target, request: ScheduledRequest, timeout_s: float) -> Exchange:
    exchanges: list[Exchange] = []
    Sender(target, timeout_s, exchanges.append).send_all([request])
    return exchanges[0]
