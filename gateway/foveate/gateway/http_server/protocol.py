"""uvicorn's fast HTTP protocol, with limits on connections, heads and chunks, and without upgrades."""

import asyncio
import re
from functools import lru_cache
from typing import Any

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from foveate.gateway.http_server import refusals
from foveate.gateway.http_server.connections import ConnectionLimits, ConnectionTable
from foveate.gateway.http_server.refusals import MAX_HEAD_BYTES, MAX_PIPELINED, HttpRefusal

PROBES = (b"/livez", b"/readyz", b"/metrics")
"""Paths that are answered while the server has too many connections."""
MANY_CHUNKS, MIN_CHUNK_BYTES = 1024, 64
"""A body of more chunks than this needs this many bytes in a chunk, on average: each chunk costs a call."""

_CHECKED_HEADERS = frozenset((b"host", b"expect", b"transfer-encoding"))
_HOST = re.compile(rb"(\[[0-9a-f:.%]+\]|[\w.~!$&'()*+,;=%-]+)(:\d*)?", re.IGNORECASE)


class ParsingStopped(Exception):
    """Raised in a callback of the parser: the rest of the connection is not parsed."""


class AnswerTransport:
    """The transport that answers are written to. The protocol decides how it is closed."""

    __slots__ = ("close", "is_closing", "write")

    def __init__(self, protocol: "BoundedHttp", transport: asyncio.Transport) -> None:
        self.write, self.is_closing = transport.write, transport.is_closing
        self.close = protocol.close_after_answer


class BoundedHttp(HttpToolsProtocol):
    """One connection of a server.

    `_head_bytes` is the number of bytes received since the end of the last request, and -1 while a body is
    read.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        table: ConnectionTable | None = None,
    ) -> None:
        """table: the connections of the server; None: the number of connections has no limit."""
        super().__init__(config, server_state, app_state, _loop)
        self.table = table or ConnectionTable(ConnectionLimits())
        self._head_bytes = 0
        self._head_ended = False
        self._check_size = False
        """Whether the head may be too large: its exact size is computed when it is complete."""
        self._hosts: list[bytes] = []
        self._unknown_coding = False
        self._offered = False
        """The head offers an upgrade, and is about to be parsed again without the offer."""
        self._chunks = self._body_bytes = self._framing_bytes = 0
        self._refusal: HttpRefusal | None = None
        self._last_refusal: HttpRefusal | None = None
        """Sent after the answers to all earlier requests."""
        self._deaf = False
        """All further bytes are discarded."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The connection is open."""
        super().connection_made(transport)
        self._answers = AnswerTransport(self, transport)
        self.table.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed."""
        self.table.remove(self)
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse bytes of the connection."""
        if self._deaf:
            return
        self._unset_keepalive_if_required()
        before, self._head_ended = self._head_bytes, False
        self._framing_bytes += len(data)
        if before + len(data) > MAX_HEAD_BYTES:
            self._check_size = True
        self._parse(data)
        if self._head_bytes < 0:
            self._check_size = False
            if self._framing_bytes > MAX_HEAD_BYTES and not self._deaf:
                self._refuse(refusals.TINY_CHUNKS)
        elif before < 0 or self._head_ended:
            self._check_size = self._head_has_begun  # in these bytes, at an unknown position
        else:
            self._continue_head(len(data))

    def _parse(self, data: bytes) -> None:
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as pause:
                if not self._offered:
                    self._deaf = True  # the rest is for the tunnel that CONNECT has asked for
                    return
                data = self._head_without_offer() + data[pause.args[0] :]
            except httptools.HttpParserError:
                if not self._deaf:
                    self._refuse(self._refusal or refusals.INVALID)
                return
            else:
                return

    def _head_without_offer(self) -> bytes:
        """The head without the header `upgrade`: a server may ignore an offer (RFC 9110, section 7.8).

        The parser stops at an offer. It takes all bytes after the head for the other protocol, although
        they are the body of a request whose client goes on with HTTP/1.1.
        """
        self._offered = False
        line = b"%b %b HTTP/%b" % (
            self.parser.get_method(), self.url, self.parser.get_http_version().encode()
        )  # fmt: skip
        headers = [b"%b: %b" % pair for pair in self.headers if pair[0] != b"upgrade"]
        self._hosts.clear()
        self.parser = httptools.HttpRequestParser(
            self
        )  # after `connection: close`, the old one takes no more
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return b"\r\n".join((line, *headers, b"", b""))

    def _continue_head(self, size: int) -> None:
        """Count the bytes of an incomplete head, and start its time limit."""
        if self._head_bytes == 0 and self in self.table.idle:
            self.table.await_head(self)
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES and not self._deaf:
            self._refuse(self._too_large())

    def _too_large(self) -> HttpRefusal:
        """The refusal of a head over the limit."""
        return refusals.URL_TOO_LONG if 2 * len(self.url) > MAX_HEAD_BYTES else refusals.HEAD_TOO_LARGE

    def on_header(self, name: bytes, value: bytes) -> None:
        """The parser has read a header, or a trailer of a body in chunks, which is ignored."""
        if self._head_bytes < 0:
            return
        name = name.lower()
        if name in _CHECKED_HEADERS:
            if name == b"host":
                self._hosts.append(value)
            elif name == b"expect":
                self.expect_100_continue = value.lower() == b"100-continue"
            elif value.lower() != b"chunked":
                self._unknown_coding = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """The parser has read a whole head."""
        if self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT":
            self._offered = True
            return
        refusal = self._check_head()
        if refusal is None and self.table.is_full and self._needs_place:
            self.table.refuse()
            refusal = refusals.TOO_MANY_CONNECTIONS
        if refusal is None and len(self.pipeline) >= MAX_PIPELINED:
            refusal = refusals.TOO_MANY_PIPELINED
        if refusal is not None:
            self.app, self.url = refusal, b"/"  # uvicorn would parse the target
        super().on_headers_complete()
        self.cycle.transport = self._answers  # type: ignore[assignment]
        self.table.begin(self)
        self._head_ended, self._head_bytes = True, -1
        self._chunks = self._body_bytes = self._framing_bytes = 0
        if refusal is not None:
            self._deaf = True
            raise ParsingStopped

    @property
    def _needs_place(self) -> bool:
        """Whether this request adds to those in flight: it is no probe, and follows on no other one."""
        follows = self.cycle is not None and not self.cycle.response_complete
        return not follows and self.url.partition(b"?")[0] not in PROBES

    def _check_head(self) -> HttpRefusal | None:
        """Why this head is refused; None if it is not."""
        hosts, self._hosts = self._hosts, []
        unknown_coding, self._unknown_coding = self._unknown_coding, False
        if self._check_size and head_size(self.url, self.headers) > MAX_HEAD_BYTES:
            return self._too_large()
        version = self.parser.get_http_version()
        if version != "1.1":
            self.expect_100_continue = False  # RFC 9110, section 10.1.1
            if version != "1.0":
                return refusals.UNKNOWN_VERSION
        if self.url[:1] != b"/":
            if self.parser.get_method() == b"CONNECT":
                return refusals.NO_TUNNEL
            self.url = origin_form(self.url)
        if unknown_coding:
            return refusals.UNKNOWN_CODING
        if (len(hosts) == 1 and is_valid_host(hosts[0])) or (not hosts and version == "1.0"):
            return None
        return refusals.NO_HOST

    def on_chunk_header(self) -> None:
        """The parser has read the size of a chunk."""
        self._chunks += 1
        if self._chunks > MANY_CHUNKS and self._chunks * MIN_CHUNK_BYTES > self._body_bytes:
            self._refusal = refusals.TINY_CHUNKS
            raise ParsingStopped

    def on_body(self, body: bytes) -> None:
        """The parser has read a part of a body."""
        self._framing_bytes = 0
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The parser has read a whole request."""
        if self._offered:
            return
        self._head_bytes = 0
        super().on_message_complete()
        if self.cycle.response_complete:
            self.table.await_request(self)

    def on_response_complete(self) -> None:
        """An answer has been sent."""
        super().on_response_complete()
        if self.transport.is_closing() or not self.cycle.response_complete:
            return
        if self._deaf:
            self._unset_keepalive_if_required()
            if self._last_refusal is not None:
                self._answer_and_close(self._last_refusal)
        elif self._head_bytes < 0:
            self.table.await_end(self)
        elif self._head_bytes or self._head_has_begun:
            self.table.await_head(self)
        else:
            self.table.await_request(self)

    @property
    def _head_has_begun(self) -> bool:
        """Whether a part of the next head has arrived, except for empty lines before it."""
        return self.scope is not (self.cycle and self.cycle.scope)

    def _should_upgrade(self) -> bool:
        return False

    def _refuse(self, refusal: HttpRefusal) -> None:
        """Refuse the bytes at which the parser has stopped, after the answers to all earlier requests."""
        self._deaf = True
        cycle, in_body = self.cycle, self._head_bytes < 0
        if cycle is None or (cycle.response_complete and not in_body):
            self._answer_and_close(refusal)
        elif not in_body:
            self._last_refusal = refusal
        elif self.pipeline:
            self.pipeline[0] = (cycle, refusal)
        else:
            answered = cycle.response_started
            cycle.disconnected = True
            cycle.message_event.set()
            if answered:
                self._discard()
            else:
                self._answer_and_close(refusal)

    def _answer_and_close(self, refusal: HttpRefusal) -> None:
        if not self.transport.is_closing():
            self._last_refusal = None
            self.transport.write(refusal.encoded(self.server_state.default_headers))
            self._discard()

    def _discard(self) -> None:
        """Send nothing more, and discard what arrives until the client closes the connection.

        Closing it with bytes unread would reset it, and the client could lose its last answer.
        """
        self._deaf = True
        self.pipeline.clear()
        if not self.transport.is_closing():
            self.transport.write_eof()
            self.flow.resume_reading()
            self.table.await_end(self)

    def close_after_answer(self) -> None:
        """Close the connection after the last answer on it."""
        if self._head_bytes < 0 and not self.transport.is_closing():
            self._discard()
            return
        self.transport.close()
        if size := self.transport.get_write_buffer_size():
            self.table.await_reader(self, size)

    def pause_writing(self) -> None:
        """The client does not read its answer as fast as it is sent."""
        super().pause_writing()
        self.table.await_reader(self, self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        """The client has read most of its answer."""
        super().resume_writing()
        if not self.transport.is_closing():
            self.table.reader_caught_up(self)

    def timeout_keep_alive_handler(self) -> None:
        """No request has arrived for the keep-alive time."""
        self.expire()

    def expire(self) -> None:
        """Close the connection, because no request has arrived in time."""
        if size := self.transport.get_write_buffer_size():
            if self not in self.table.sending:
                self.table.await_reader(self, size)
            self.table.await_request(self)  # the time begins anew: the client still reads its last answer
        elif self._deaf or self._head_bytes < 0:
            self.transport.abort()
        else:
            self._close_waiting(refusals.HEAD_TOO_SLOW)

    def cut(self) -> None:
        """Close the connection, because its client does not read its answer."""
        self.transport.abort()

    def make_room(self) -> None:
        """Close the connection, because another one needs its place."""
        if self._deaf:
            self.transport.abort()
        else:
            self._close_waiting(refusals.TOO_MANY_CONNECTIONS)

    def _close_waiting(self, refusal: HttpRefusal) -> None:
        """Close a connection without a request in flight; if a head has begun, say why."""
        self._deaf = True
        if self._head_has_begun and not self.transport.is_closing():
            self.transport.write(refusal.encoded(self.server_state.default_headers))
        self.transport.close()


def head_size(url: bytes, headers: list[tuple[bytes, bytes]]) -> int:
    """The bytes of a head, about."""
    return len(url) + sum(len(name) + len(value) + 4 for name, value in headers)


@lru_cache(maxsize=256)
def is_valid_host(host: bytes) -> bool:
    """Whether this is the value of a host header: a name or an address, and perhaps a port."""
    return len(host) < 1024 and _HOST.fullmatch(host) is not None


def origin_form(target: bytes) -> bytes:
    """A request target in absolute form, or `*`, as a path with a query (RFC 9112, section 3.2).

    Raises httptools.HttpParserInvalidURLError.
    """
    if target == b"*":
        return b"/*"
    parsed = httptools.parse_url(target)
    return (parsed.path or b"/") + (b"?" + parsed.query if parsed.query else b"")
