"""The table of connections: the longest-waiting one is closed for room, and each has a time limit."""

import logging
import resource

import pytest

from foveate.core.errors import SetupError
from foveate.core.settings import Settings
from foveate.gateway.http_server.connections import (
    ConnectionLimits,
    ConnectionTable,
    Waiting,
    default_max_connections,
)


class TableEntry:
    """A connection that records how it was closed."""

    def __init__(self) -> None:
        self.closed = ""
        self.place: Waiting | None = None

    def expire(self) -> None:
        self.closed = "expired"

    def cut(self) -> None:
        self.closed = self.closed or "cut"

    def make_room(self) -> None:
        self.closed = "for room"


class Time:
    """A clock that the test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def table(max_connections: int = 2) -> tuple[ConnectionTable, Time]:
    clock = Time()
    return ConnectionTable(ConnectionLimits(max_connections, 10, 75, 30), clock), clock


def test_the_longest_waiting_connection_is_closed_for_room_and_idle_ones_last() -> None:
    connections, clock = table()
    entries = [TableEntry() for _ in range(connections.limits.max_open)]
    for entry in entries:
        connections.add(entry)
    for answered in entries[:3]:
        connections.begin(answered)
        connections.await_request(answered)
    connections.begin(entries[3])  # in flight
    clock.now = 2.0
    for _ in range(len(entries) - 4):
        connections.add(TableEntry())
    assert [entry.closed for entry in entries] == [""] * 4 + ["for room"] * (len(entries) - 4)


def test_idle_connections_are_closed_for_room_the_oldest_first() -> None:
    connections, _ = table()
    entries = [TableEntry() for _ in range(connections.limits.max_open)]
    for entry in entries:
        connections.add(entry)
    for entry in (*entries[1:], entries[0]):
        connections.begin(entry)
        connections.await_request(entry)
    connections.add(TableEntry())
    assert [entry for entry in entries if entry.closed] == [entries[1]]


def test_an_arriving_request_is_not_closed_for_room_while_others_wait() -> None:
    connections, clock = table()
    idle = [TableEntry() for _ in range(connections.limits.max_open)]
    for entry in idle:
        connections.add(entry)
        connections.begin(entry)
        connections.await_request(entry)
    answered = idle.pop()
    connections.await_end(answered)
    clock.now = 20.0
    arriving = [TableEntry() for _ in range(10)]
    for entry in arriving:
        connections.add(entry)
    assert answered.closed
    assert [entry.closed for entry in idle[:9]] == ["for room"] * 9
    assert not any(entry.closed for entry in (*arriving, *idle[9:]))


def test_without_a_waiting_connection_the_new_one_is_closed() -> None:
    connections, _ = table()
    for _ in range(connections.limits.max_open):
        entry = TableEntry()
        connections.add(entry)
        connections.begin(entry)
    late = TableEntry()
    connections.add(late)
    assert late.closed == "for room"
    assert connections.is_full


def test_connections_that_wait_do_not_make_the_server_full() -> None:
    connections, _ = table(max_connections=1)
    for _ in range(20):
        connections.add(TableEntry())
    assert not connections.is_full
    busy = next(iter(connections.opening))
    connections.begin(busy)
    assert connections.is_full
    connections.await_request(busy)
    assert not connections.is_full


def test_connections_expire_and_one_warning_names_their_number(caplog: pytest.LogCaptureFixture) -> None:
    connections, clock = table()
    half, idle, slow, busy = (TableEntry() for _ in range(4))
    for entry in (half, idle, slow, busy):
        connections.add(entry)
    connections.begin(busy)
    connections.begin(idle)
    connections.await_request(idle)
    connections.begin(slow)
    connections.await_reader(slow, 16 * 1024 * 10)
    closed = {}
    for clock.now in (9.9, 10, 39, 41, 74, 76):
        connections.close_expired()
        closed[clock.now] = [entry.closed for entry in (half, idle, slow, busy)]
    assert closed[9.9] == ["", "", "", ""]
    assert closed[10] == closed[39] == ["expired", "", "", ""]
    assert closed[41] == closed[74] == ["expired", "", "cut", ""]
    assert closed[76] == ["expired", "expired", "cut", ""]
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert ["1 without a complete request head" in text for text in warnings] == [True, False]
    assert all("FOVEATE_MAX_CONNECTIONS" in text for text in warnings)


def test_warnings_are_rare_under_a_flood(caplog: pytest.LogCaptureFixture) -> None:
    connections, clock = table()
    for clock.now in range(100):
        for _ in range(100):
            connections.add(TableEntry())
        connections.close_expired()
    assert 5 <= len(caplog.records) <= 12


def test_the_default_limit_leaves_files_for_other_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    for files, limit in ((1024, 736), (10**6, 8192), (resource.RLIM_INFINITY, 8192), (16, 1)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, files=files: (files, files))
        assert default_max_connections() == limit
        limits = ConnectionLimits.of(Settings())
        if files == 1024:
            assert limits.max_open + limits.backlog < 900


def test_a_limit_above_the_open_files_is_refused_at_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 1024))
    for limit in (7, 800):
        assert ConnectionLimits.of(Settings(max_connections=limit)).max_connections == limit
    with pytest.raises(SetupError, match=r"max_connections 5000 .* may have 1024: raise .*ulimit -n"):
        ConnectionLimits.of(Settings(max_connections=5000))
