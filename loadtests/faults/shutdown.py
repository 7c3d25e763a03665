"""Hung forwards and shutdown: readiness after a hang, SIGTERM beside a hang, and SIGTERM under load."""

import socket
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

from loadtests.faults.hanging import HANG
from loadtests.faults.process import MeasuredServer, post, running, status
from loadtests.report import Figures

HANGING = ("loadtests.faults.hanging",)
DRAIN_TIMEOUT_S = 10.0
"""The drain time-out of the measured servers: the default would only make the bench longer."""
ENVIRONMENT = {"FOVEATE_DRAIN_TIMEOUT_S": f"{DRAIN_TIMEOUT_S:g}"}
HANG_LIMIT_S = 60.0
"""Seconds after a hang in which a server must stop to be ready; the figure if it does not."""
RATE, BEFORE_S = 30, 3.0
"""Requests per second of the steady stream, and its seconds before SIGTERM."""


def measure(hang_limit_s: float = HANG_LIMIT_S) -> Figures:
    """All figures, each of a server of its own."""
    figures = {"drain_timeout_s": DRAIN_TIMEOUT_S}
    with running(HANGING, ENVIRONMENT) as server:
        hang(server)
        server.terminate()
        figures["sigterm_hung_forward_exit_s"] = server.exit_s(DRAIN_TIMEOUT_S + 30)
    with running(HANGING, ENVIRONMENT) as server:
        hang(server)
        figures["readyz_false_after_hang_s"] = not_ready_after_s(server, hang_limit_s)
        server.process.kill()
        server.process.wait()
    with running(HANGING, ENVIRONMENT) as server:
        figures["sigterm_inflight_ok_share"] = inflight_ok_share(server)
    return figures


def hang(server: MeasuredServer) -> None:
    """Make the forward hang, and close the connection of the request that does it."""
    with socket.create_connection(("127.0.0.1", server.port), 10) as client:
        client.sendall(b"POST /classify HTTP/1.1\r\nhost: x\r\ncontent-type: image/jpeg\r\n"
                       b"content-length: %d\r\n\r\n%b" % (len(HANG), HANG))  # fmt: skip
        time.sleep(1)  # the forward has begun


def not_ready_after_s(server: MeasuredServer, limit_s: float) -> float:
    """Seconds until /readyz answers 200 no longer, while clients go on to ask; at most `limit_s`."""
    started = time.monotonic()
    stop = threading.Event()

    def ask() -> None:
        while not stop.wait(0.2):
            post(server, "/classify", b"image", "image/jpeg", 1)

    clients = [threading.Thread(target=ask) for _ in range(2)]
    for client in clients:
        client.start()
    try:
        while (elapsed_s := time.monotonic() - started) < limit_s and server.process.poll() is None:
            if status(server, "/readyz") != 200:
                return elapsed_s
            time.sleep(0.1)
        return limit_s if server.process.poll() is None else elapsed_s
    finally:
        stop.set()
        for client in clients:
            client.join()


def inflight_ok_share(server: MeasuredServer, rate: int = RATE, before_s: float = BEFORE_S) -> float:
    """Of a steady stream, the share of the requests begun before SIGTERM that got 200.

    The stream goes on for a second after it: new requests may be refused.
    """
    begun: list[Future[int]] = []
    with ThreadPoolExecutor(64) as pool:
        started = time.monotonic()
        for number in range(int(rate * (before_s + 1))):
            time.sleep(max(0.0, started + number / rate - time.monotonic()))
            if number == int(rate * before_s):
                server.terminate()
            request = pool.submit(post, server, "/classify", b"image %d" % number, "image/jpeg", 30)
            if number < int(rate * before_s):
                begun.append(request)
        return sum(request.result() == 200 for request in begun) / len(begun)
