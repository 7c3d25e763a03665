"""Wait until a Foveate server has warmed up all rungs: before that, its figures are not its steady ones."""

import re
import time
import urllib.error
import urllib.request
from urllib.parse import urlsplit

WARM_RATIO = re.compile(r"^foveate_warm_ratio(?:\{[^}]*\})? (\S+)$", re.MULTILINE)


def warm_ratio(metrics: str) -> float:
    """The smallest warm ratio of all models in a text of metrics; 1 if there is none."""
    return min((float(value) for value in WARM_RATIO.findall(metrics)), default=1.0)


def wait_warm(url: str, limit_s: float = 180.0) -> float:
    """Wait for the server with this URL, of any path. Seconds that it took.

    A server without that metric counts as warm. Raises TimeoutError after `limit_s` seconds.
    """
    parts, started = urlsplit(url), time.monotonic()
    while time.monotonic() - started < limit_s:
        try:
            with urllib.request.urlopen(f"http://{parts.netloc}/metrics", timeout=10) as response:
                ratio = warm_ratio(response.read().decode())
        except urllib.error.HTTPError:
            return time.monotonic() - started
        if ratio >= 1:
            return time.monotonic() - started
        time.sleep(0.5)
    raise TimeoutError(f"{parts.netloc} did not warm up within {limit_s:g} s")
