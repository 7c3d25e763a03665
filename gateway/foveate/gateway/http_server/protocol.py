"""uvicorn's fast HTTP protocol, with limits on connections, heads and chunks, and without upgrades."""

import asyncio
from typing import Any

import httptools
import uvicorn
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.server import ServerState

from foveate.gateway.http_server import refusals
from foveate.gateway.http_server.connections import ConnectionTable
from foveate.gateway.http_server.head import check_host, check_size, origin_form, too_large
from foveate.gateway.http_server.refusals import MAX_HEAD_BYTES, MAX_PIPELINED, HttpRefusal
from foveate.gateway.http_server.waiting import WaitingHttp

PROBES = (b"/livez", b"/readyz", b"/metrics")
"""Paths that are answered while the server has too many connections."""
MANY_CHUNKS, MIN_CHUNK_BYTES = 1024, 64
"""A body of more chunks than this needs this many bytes in a chunk, on average: each chunk costs a call."""

_CHECKED_HEADERS = frozenset((b"host", b"expect", b"transfer-encoding"))


class UntilClose(int):
    """The length, for uvicorn, of an answer that may have any: never exceeded, and always complete."""

    def __lt__(self, other: int) -> bool:
        return False

    def __sub__(self, other: int) -> int:
        return self


class ParsingStopped(Exception):
    """Raised in a callback of the parser: the rest of the connection is not parsed."""


class BoundedHttp(WaitingHttp):
    """One connection of a server: how its bytes are parsed, and what is refused."""

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        table: ConnectionTable | None = None,
    ) -> None:
        """table: the connections of the server; None: the number of connections has no limit."""
        super().__init__(config, server_state, app_state, _loop, table)
        self._head_ended = False
        self._check_size = False
        """Whether the head may be too large: its exact size is computed when it is complete."""
        self._hosts: list[bytes] = []
        self._unknown_coding = False
        self._offered = False
        """The head offers an upgrade, and is about to be parsed again without the offer."""
        self._chunks = self._body_bytes = self._framing_bytes = 0
        self._refusal: HttpRefusal | None = None
        """Why a callback has stopped the parser."""

    def data_received(self, data: bytes) -> None:
        """Parse bytes of the connection."""
        if self._ignores_input:
            return
        before, self._head_ended, size = self._head_bytes, False, len(data)
        self._framing_bytes += size
        if before + size > MAX_HEAD_BYTES:
            self._check_size = True
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._parse_on(data, error)
        except httptools.HttpParserUpgrade as error:
            self._parse_on(data, error)
        if self._head_bytes < 0:
            self._check_size = False
            if self._framing_bytes > MAX_HEAD_BYTES and not self._ignores_input:
                self._refuse(refusals.TINY_CHUNKS)
        elif before < 0 or self._head_ended:
            self._check_size = self._head_has_begun  # in these bytes, at an unknown position
        else:
            self._continue_head(size)

    def _parse_on(self, data: bytes, error: Exception | None) -> None:
        """Parse on after an offer of an upgrade; refuse what the parser does not take."""
        while isinstance(error, httptools.HttpParserUpgrade):
            data = self._head_without_offer() + data[error.args[0] :]
            try:
                self.parser.feed_data(data)
                error = None
            except (httptools.HttpParserError, httptools.HttpParserUpgrade) as next_error:
                error = next_error
        if error is not None and not self._ignores_input:
            self._refuse(self._refusal or refusals.INVALID)

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
        # After `connection: close`, the old parser takes no more bytes.
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return b"\r\n".join((line, *headers, b"", b""))

    def _continue_head(self, size: int) -> None:
        """Count the bytes of an incomplete head, and start its time limit."""
        if self._head_bytes == 0 and self.place is self.table.idle:
            self.table.await_head(self)
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES and not self._ignores_input:
            self._refuse(too_large(self.url))

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
            self.app, self.url = refusal.for_target(self.url), b"/"  # uvicorn would parse the target
        super().on_headers_complete()
        self.cycle.transport = self._answers  # type: ignore[assignment]
        if self.scope["http_version"] == "1.0":
            # Such a client knows no chunks: its answer ends with the connection (RFC 9112, section 6.3).
            self.cycle.chunked_encoding = False
            self.cycle.expected_content_length = UntilClose()
        self.table.begin(self)
        self._head_ended, self._head_bytes = True, -1
        self._chunks = self._body_bytes = self._framing_bytes = 0
        if refusal is not None:
            self._ignores_input = True
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
        if self._check_size and (refusal := check_size(self.url, self.headers)):
            return refusal
        version = self.parser.get_http_version()
        if version != "1.1":
            self.expect_100_continue = False  # RFC 9110, section 10.1.1
            if version != "1.0":
                return refusals.UNKNOWN_VERSION
        if self.url[:1] != b"/":
            if self.parser.get_method() == b"CONNECT":
                return refusals.NO_TUNNEL
            self.url = origin_form(self.url)
        return refusals.UNKNOWN_CODING if unknown_coding else check_host(hosts, version)

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
        cycle = self.cycle
        if not cycle.response_complete:
            cycle.body += body
            if len(cycle.body) > HIGH_WATER_LIMIT:
                self.flow.pause_reading()
            cycle.message_event.set()

    def on_message_complete(self) -> None:
        """The parser has read a whole request."""
        if self._offered:
            return
        self._head_bytes, cycle = 0, self.cycle
        if cycle.response_complete:
            self.table.await_request(self)
        else:
            cycle.more_body = False
            cycle.message_event.set()

    def _should_upgrade(self) -> bool:
        return False

    def _refuse(self, refusal: HttpRefusal) -> None:
        """Refuse the bytes at which the parser has stopped, after the answers to all earlier requests."""
        self._ignores_input = True
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
