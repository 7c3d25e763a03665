"""Slow clients: heads that never end, on more connections than the server has descriptors."""

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from loadtests.faults.process import MeasuredServer, post, running
from loadtests.faults.shutdown import HANGING
from loadtests.load.machine import raise_file_limit
from loadtests.report import Figures

HEADS, MAX_FILES = 1100, 1024
"""Connections whose heads never end, and the descriptors of the server."""
NORMAL, NORMAL_TIMEOUT_S = 50, 5.0
"""Normal requests, and the seconds after which one counts as unanswered."""
HALF_HEAD = b"POST /classify HTTP/1.1\r\nhost: x\r\nx-slow: "


def measure() -> Figures:
    """The share of normal requests that are answered while the slow ones are open."""
    raise_file_limit()
    with running(HANGING, max_files=MAX_FILES) as server, ExitStack() as open_heads:
        open_half_heads(server, HEADS, open_heads)
        time.sleep(1)
        return {"slowloris_normal_ok_share": normal_ok_share(server)}


def open_half_heads(server: MeasuredServer, count: int, stack: ExitStack) -> None:
    """Open connections and send half a head on each; a connection that is refused is left out."""
    for _ in range(count):
        try:
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 2))
            connection.sendall(HALF_HEAD)
        except OSError:
            continue


def normal_ok_share(server: MeasuredServer, count: int = NORMAL) -> float:
    """The share of normal requests, ten at a time, that get 200."""

    def send(number: int) -> bool:
        return post(server, "/classify", b"image %d" % number, "image/jpeg", NORMAL_TIMEOUT_S) == 200

    with ThreadPoolExecutor(10) as pool:
        return sum(pool.map(send, range(count))) / count
