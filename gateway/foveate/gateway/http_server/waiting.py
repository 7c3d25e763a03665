"""uvicorn's fast HTTP protocol with bounds on all waits for the client, and with ends that lose no answer."""

import asyncio
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from foveate.gateway.http_server import refusals
from foveate.gateway.http_server.connections import ConnectionLimits, ConnectionTable, Waiting
from foveate.gateway.http_server.refusals import HttpRefusal


class AnswerTransport:
    """The transport that answers are written to. The protocol decides how it is closed."""

    __slots__ = ("close", "is_closing", "write")

    def __init__(self, protocol: "WaitingHttp", transport: asyncio.Transport) -> None:
        self.write, self.is_closing = transport.write, transport.is_closing
        self.close = protocol.close_after_answer


class WaitingHttp(HttpToolsProtocol):
    """One connection of a server: what it waits for, and how it ends.

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
        self.place: Waiting | None = None
        self._head_bytes = 0
        self._last_refusal: HttpRefusal | None = None
        """Sent after the answers to all earlier requests."""
        self._ignores_input = False
        """All further bytes are discarded."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The connection is open."""
        super().connection_made(transport)
        self._answers = AnswerTransport(self, transport)
        self.table.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed."""
        self.table.remove(self)
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """An answer has been sent: start the next request, or wait for one.

        In place of uvicorn's method, which would set a timer for each answer.
        """
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            task = self.loop.create_task(cycle.run_asgi(app))
            task.add_done_callback(self.tasks.discard)
            self.tasks.add(task)
        elif self._ignores_input:
            if self._last_refusal is not None:
                self._answer_and_close(self._last_refusal)
        elif self._head_bytes < 0:
            self.table.await_end(self)
        elif self._head_bytes or self.scope is not self.cycle.scope:
            self.table.await_head(self)
        else:
            self.table.await_request(self)

    @property
    def _head_has_begun(self) -> bool:
        """Whether a part of the next head has arrived, except for empty lines before it."""
        return self.scope is not (self.cycle and self.cycle.scope)

    def _answer_and_close(self, refusal: HttpRefusal) -> None:
        if not self.transport.is_closing():
            self._last_refusal = None
            self.transport.write(refusal.encoded(self.server_state.default_headers))
            self._discard()

    def _discard(self) -> None:
        """Send nothing more, and discard what arrives until the client closes the connection.

        Closing it with bytes unread would reset it, and the client could lose its last answer.
        """
        self._ignores_input = True
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

    def shutdown(self) -> None:
        """The server stops: close the connection after its last answer."""
        if self.place is self.table.discarding:
            self.transport.abort()
        else:
            super().shutdown()

    def pause_writing(self) -> None:
        """The client does not read its answer as fast as it is sent."""
        super().pause_writing()
        self.table.await_reader(self, self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        """The client has read most of its answer."""
        super().resume_writing()
        if not self.transport.is_closing():
            self.table.reader_caught_up(self)

    def expire(self) -> None:
        """Close the connection, because no request has arrived in time."""
        if size := self.transport.get_write_buffer_size():
            if self not in self.table.sending:
                self.table.await_reader(self, size)
            self.table.await_request(self)  # the time begins anew: the client still reads its last answer
        elif self._ignores_input or self._head_bytes < 0:
            self.transport.abort()
        else:
            self._close_waiting(refusals.HEAD_TOO_SLOW)

    def cut(self) -> None:
        """Close the connection, because its client does not read its answer."""
        self.transport.abort()

    def make_room(self) -> None:
        """Close the connection, because another one needs its place."""
        if self._ignores_input or self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self._close_waiting(refusals.TOO_MANY_CONNECTIONS)

    def _close_waiting(self, refusal: HttpRefusal) -> None:
        """Close a connection without a request in flight; if a head has begun, say why."""
        self._ignores_input = True
        if self._head_has_begun and not self.transport.is_closing():
            self.transport.write(refusal.encoded(self.server_state.default_headers))
        self.transport.close()
