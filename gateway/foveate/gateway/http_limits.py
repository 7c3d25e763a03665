"""uvicorn's fast HTTP parser with the one bound it lacks: on the size of a request's head."""

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 * 1024
_REFUSAL = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/problem+json\r\n"
    b"connection: close\r\ncontent-length: %d\r\n\r\n%s"
)
_PROBLEM = (
    b'{"type":"urn:foveate:problem:head-too-large","title":"Head too large","status":431,'
    b'"detail":"the request line and headers are over 65536 bytes"}'
)


class BoundedHttp(HttpToolsProtocol):
    """Answers 431 and hangs up once a head has grown past the bound, before anything is made of it.

    `_head_bytes` counts the head that is being read, and is -1 while a body is.
    """

    _head_bytes = 0
    _ended_a_head = False

    def data_received(self, data: bytes) -> None:
        self._ended_a_head = False
        in_head = self._head_bytes >= 0
        super().data_received(data)
        # Counted after parsing, and only where no head ended: the rest of a piece may be body.
        if in_head and not self._ended_a_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                self.transport.write(_REFUSAL % (len(_PROBLEM), _PROBLEM))
                self.transport.close()

    def on_headers_complete(self) -> None:
        self._ended_a_head, self._head_bytes = True, -1
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._head_bytes = 0
        super().on_message_complete()
