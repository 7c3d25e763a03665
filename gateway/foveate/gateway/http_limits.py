"""uvicorn's fast HTTP parser with a limit on the size of a request's head, which it lacks."""

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 * 1024
"""Bytes of the request line and headers together."""
_REFUSAL = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/problem+json\r\n"
    b"connection: close\r\ncontent-length: %d\r\n\r\n%s"
)
_PROBLEM = (
    b'{"type":"urn:foveate:problem:head-too-large","title":"Head too large","status":431,'
    b'"detail":"the request line and headers are over 65536 bytes"}'
)


class BoundedHttp(HttpToolsProtocol):
    """Answers 431 and closes the connection once a request's head exceeds the limit.

    `_head_bytes` is the number of bytes of the head so far, and -1 while a body is read.
    """

    _head_bytes = 0
    _head_ended = False

    def data_received(self, data: bytes) -> None:
        """Parse bytes of the connection."""
        self._head_ended = False
        in_head = self._head_bytes >= 0
        super().data_received(data)
        # Count after parsing, and only where no head ended: the rest of these bytes may be a body.
        if in_head and not self._head_ended:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                self.transport.write(_REFUSAL % (len(_PROBLEM), _PROBLEM))
                self.transport.close()

    def on_headers_complete(self) -> None:
        """The parser has read a whole head."""
        self._head_ended, self._head_bytes = True, -1
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The parser has read a whole request."""
        self._head_bytes = 0
        super().on_message_complete()
