"""Memory of a default server: after its start, in a burst of large pictures, and a minute later."""

import io
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

from PIL import Image

from loadtests.faults.process import MeasuredServer, post, running
from loadtests.report import Figures

PICTURES, SIZE = 8, (10_000, 5_000)
"""How many pictures are sent at once, and their width and height: 50 million pixels."""
ANSWER_LIMIT_S = 600.0
LATER_S = 60.0


def large_picture() -> bytes:
    """A transparent PNG of one colour: 209 kB, which decode to 200 MB."""
    out = io.BytesIO()
    Image.new("RGBA", SIZE, (10, 200, 30, 200)).save(out, "PNG")
    return out.getvalue()


def burst(server: MeasuredServer, pictures: int = PICTURES) -> float:
    """Send large pictures at once, and ask for overlays. The share of them that got 200."""
    picture = large_picture()

    def send(number: int) -> bool:
        # Bytes after the end of a PNG do not change it, and keep the caches out.
        body = picture + bytes([number])
        return post(server, "/segment?overlay=true", body, "image/png", ANSWER_LIMIT_S) == 200

    with ThreadPoolExecutor(pictures) as pool:
        return sum(pool.map(send, range(pictures))) / pictures


def measure(later_s: float = LATER_S) -> Figures:
    """The figures of one server, once it has warmed up."""
    # An own cache folder: a remembered precision of a busy hour would need other kernels, and other memory.
    with tempfile.TemporaryDirectory() as folder, running(environment={"XDG_CACHE_HOME": folder}) as server:
        figures = {"rss_mb_when_ready": server.memory_mb()}
        server.wait_warm()
        time.sleep(1)
        figures["rss_mb_after_start"] = server.memory_mb()
        server.forget_peak()
        figures["large_pictures_ok_share"] = burst(server)
        figures["rss_mb_peak_large_pictures"] = server.memory_mb("VmHWM")
        time.sleep(later_s)
        return figures | {"rss_mb_a_minute_later": server.memory_mb()}
