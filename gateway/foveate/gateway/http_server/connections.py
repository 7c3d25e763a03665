"""The open connections of a server: how many there may be, and how long each may wait for its client."""

import logging
import resource
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Protocol

from foveate.core.errors import SetupError
from foveate.core.settings import DEFAULTS, Settings

log = logging.getLogger(__name__)

RESERVED_CONNECTIONS = 32
"""Connections above the limit, for probes and metrics, and for requests that get 503."""
OTHER_FILES = 32
"""Open files besides connections: listeners, logs, clips on disk, and clients of other services."""
MAX_DEFAULT_CONNECTIONS = 8192
"""The largest limit that is derived from the limit on open files."""
DISCARD_TIMEOUT_S = 30.0
"""Seconds for which the rest of a request is read and discarded, once it has its answer."""
ARRIVAL_S = 1.0
"""Seconds in which the head of a request normally arrives."""
WARNING_INTERVAL_S = 10.0
"""Seconds between two warnings about closed connections."""


class WaitingConnection(Protocol):
    """A connection as the table sees it."""

    place: "Waiting | None"
    """Where the connection waits; set by the table. None: a request is in flight."""

    def expire(self) -> None:
        """Close the connection, because no request has arrived in time."""
        ...

    def cut(self) -> None:
        """Close the connection, because its client does not read its answer."""
        ...

    def make_room(self) -> None:
        """Close the connection at once, because another one needs its place."""
        ...


Waiting = dict[WaitingConnection, float]
"""Connections, with the times at which they expire."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """The limits of one server. The default has none on their number: behind a proxy, which has one."""

    max_connections: int = 2**31
    """Connections with a request in flight."""
    head_timeout_s: float = DEFAULTS["head_timeout_s"]
    keep_alive_timeout_s: float = DEFAULTS["keep_alive_timeout_s"]
    send_timeout_s: float = DEFAULTS["send_timeout_s"]
    min_send_rate: int = 16 * 1024
    """Bytes per second at which a client must read its answer, after the send time-out."""

    @classmethod
    def of(cls, settings: Settings) -> "ConnectionLimits":
        """The limits that the settings ask for. Raises SetupError for more connections than open files."""
        limits = cls(
            settings.max_connections or default_max_connections(),
            settings.head_timeout_s,
            settings.keep_alive_timeout_s,
            settings.send_timeout_s,
        )
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        needed = limits.max_open + limits.backlog + OTHER_FILES
        if settings.max_connections and files != resource.RLIM_INFINITY and needed > files:
            # Past the limit the system refuses connections without a word, probes included.
            raise SetupError(
                f"max_connections {settings.max_connections} needs {needed} open files, and this process may "
                f"have {files}: raise that limit (ulimit -n), or lower max_connections"
            )
        return limits

    @property
    def max_open(self) -> int:
        """All connections together."""
        return self.max_connections + RESERVED_CONNECTIONS

    @property
    def backlog(self) -> int:
        """Connections that the system may hold until they are accepted.

        All of them are accepted before the first one can be closed, so they must fit into the open files
        that are left.
        """
        return max(64, min(2048, self.max_connections // 6))


def default_max_connections() -> int:
    """Three quarters of the open files that this process may have, less those of the reserve."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if files == resource.RLIM_INFINITY:
        return MAX_DEFAULT_CONNECTIONS
    return max(1, min(MAX_DEFAULT_CONNECTIONS, files * 3 // 4 - RESERVED_CONNECTIONS))


class ConnectionTable:
    """Counts connections, and closes those that wait too long or whose place is needed.

    A connection is in `opening` until the head of its request is complete, in `idle` between two requests,
    and in `discarding` after its answer, while the rest of the request arrives; each maps to the time at
    which it expires, and the one that has waited longest comes first. A connection that is in none of them
    has a request in flight, or is being closed and in `closing`. For the event loop's thread only.
    """

    def __init__(self, limits: ConnectionLimits, clock: Callable[[], float] = monotonic) -> None:
        self.limits, self.clock = limits, clock
        self.open = 0
        """Number of open connections."""
        self.in_flight = 0
        """Number of connections with a request in flight."""
        self.opening: Waiting = {}
        self.idle: Waiting = {}
        self.discarding: Waiting = {}
        self.closing: Waiting = {}
        self.sending: Waiting = {}
        """Connections whose client does not read its answer as fast as it is sent."""
        self._closed: Counter[str] = Counter()
        self._warned = -WARNING_INTERVAL_S

    @property
    def is_full(self) -> bool:
        """Whether as many connections as there may be have a request in flight."""
        return self.in_flight >= self.limits.max_connections

    def add(self, connection: WaitingConnection) -> None:
        """Count a new connection. Past the limit, close another one that only waits."""
        self.open += 1
        self.in_flight += 1
        self._wait(connection, self.opening, self.limits.head_timeout_s)
        if self.open > self.limits.max_open:
            self._closed["to make room"] += 1
            victim = self._longest_waiting()
            self._wait(victim, self.closing, DISCARD_TIMEOUT_S)
            victim.make_room()

    def _longest_waiting(self) -> WaitingConnection:
        """The connection to close for room. A request that is just arriving has not waited yet."""
        if self.discarding:
            return next(iter(self.discarding))
        first, until = next(iter(self.opening.items()))
        arriving_since = self.clock() + self.limits.head_timeout_s - ARRIVAL_S
        if self.idle and until > arriving_since:
            return next(iter(self.idle))
        return first

    def remove(self, connection: WaitingConnection) -> None:
        """Forget a connection that is closed."""
        self.begin(connection)
        self.in_flight -= 1
        self.open -= 1
        self.sending.pop(connection, None)

    def begin(self, connection: WaitingConnection) -> None:
        """The head of a request is complete."""
        if connection.place is not None:
            del connection.place[connection]
            connection.place = None
            self.in_flight += 1

    def _wait(self, connection: WaitingConnection, place: Waiting, timeout_s: float) -> None:
        if connection.place is None:
            self.in_flight -= 1
        else:
            del connection.place[connection]
        connection.place = place
        place[connection] = self.clock() + timeout_s

    def await_head(self, connection: WaitingConnection) -> None:
        """Wait for the rest of a head."""
        self._wait(connection, self.opening, self.limits.head_timeout_s)

    def await_request(self, connection: WaitingConnection) -> None:
        """Keep a connection for its next request."""
        self._wait(connection, self.idle, self.limits.keep_alive_timeout_s)

    def await_end(self, connection: WaitingConnection) -> None:
        """Wait for the rest of a request that has its answer, or for the client to close the connection."""
        self._wait(connection, self.discarding, DISCARD_TIMEOUT_S)

    def await_reader(self, connection: WaitingConnection, size: int) -> None:
        """Wait until the client has read its answer, of which `size` bytes are left."""
        limits = self.limits
        self.sending[connection] = self.clock() + limits.send_timeout_s + size / limits.min_send_rate

    def reader_caught_up(self, connection: WaitingConnection) -> None:
        """The client has read enough of its answer."""
        self.sending.pop(connection, None)

    def refuse(self) -> None:
        """Count a request that got 503, because the server is full."""
        self._closed["with 503"] += 1

    def close_expired(self) -> None:
        """Close the connections whose time is over. Call it about once a second."""
        now = self.clock()
        for connection in expired(self.sending, now):
            del self.sending[connection]
            self._closed["whose clients did not read"] += 1
            connection.cut()
        for connection in expired(self.closing, now):
            connection.cut()
        if late := expired(self.opening, now):
            self._closed["without a complete request head"] += len(late)
        for connection in (*late, *expired(self.idle, now), *expired(self.discarding, now)):
            self._wait(connection, self.closing, DISCARD_TIMEOUT_S)
            connection.expire()
        if self._closed and now - self._warned >= WARNING_INTERVAL_S:
            self._warned = now
            reasons = ", ".join(f"{count} {reason}" for reason, count in self._closed.items())
            log.warning(
                "closed connections: %s; %d are open, and FOVEATE_MAX_CONNECTIONS allows %d with a request",
                reasons, self.open, self.limits.max_connections,
            )  # fmt: skip
            self._closed.clear()


def expired(waiting: Waiting, now: float) -> list[WaitingConnection]:
    """The connections whose time is over."""
    return [connection for connection, until in waiting.items() if until <= now]
