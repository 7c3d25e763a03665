"""A TCP server in a thread that answers each request as a script says, for tests of HTTP clients."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Script = Callable[[int], bytes | Iterator[bytes] | float | None]
"""For the number of a request: bytes to answer, parts of an answer, seconds to wait without an answer, or
None to hang up."""


class ScriptedServer:
    """Counts connections and requests; one thread per connection."""

    def __init__(self, script: Script) -> None:
        self.script, self.connections, self.requests = script, 0, list[bytes]()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.lock = threading.Lock()
        self.thread = threading.Thread(target=self._accept, daemon=True)
        self.thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            while request := _read_request(client):
                with self.lock:
                    number = len(self.requests)
                    self.requests.append(request)
                answer = self.script(number)
                if answer is None:
                    return
                if isinstance(answer, float):
                    time.sleep(answer)
                    return
                for part in (answer,) if isinstance(answer, bytes) else answer:
                    client.sendall(part)


@contextmanager
def scripted_server(script: Script) -> Iterator[ScriptedServer]:
    """The server on a free port; closed at the end."""
    server = ScriptedServer(script)
    try:
        yield server
    finally:
        server.listener.shutdown(socket.SHUT_RDWR)  # close alone does not wake up accept
        server.listener.close()
        server.thread.join()


def http(status: int, body: bytes = b"", *headers: str) -> bytes:
    """An HTTP response."""
    lines = [f"HTTP/1.1 {status} status", f"content-length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def _read_request(client: socket.socket) -> bytes:
    """Head and body; empty where the client has closed the connection."""
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = client.recv(1 << 16)
        if not chunk:
            return b""
        data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
    while len(body) < length:
        body += client.recv(1 << 16)
    return head + b"\r\n\r\n" + body
