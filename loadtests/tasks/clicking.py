"""The time of a first and a second click on an image, over HTTP and in the server."""

import base64
import io
import json
import statistics
import time
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPConnection
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from foveate.models.profiling.evaluation import read_masks
from foveate.models.zoo.heldout import heldout

SIZE = 640, 480


@dataclass(frozen=True, slots=True)
class ClickFigures:
    """Medians over images in milliseconds, and the mean IoU with the object."""

    first_ms: float
    second_ms: float
    speedup: float
    """Of the time over HTTP: the median of the ratios of each image."""
    first_compute_ms: float
    second_compute_ms: float
    compute_speedup: float
    """Of the time on the device."""
    iou_first: float
    iou_second: float


def measure(url: str, images: int = 60) -> ClickFigures:
    """Click on the object of each of these held-out scenes, enlarged to SIZE.

    The first click is in the middle of the object, the second in the middle of the largest error. One
    connection, one request at a time.
    """
    scenes, server = heldout(), urlsplit(url)
    rows: list[tuple[float, ...]] = []
    with closing(HTTPConnection(server.hostname or "", server.port, timeout=60)) as client:
        for number in range(images):
            truth = np.asarray(Image.fromarray(read_masks(scenes.masks[number], 224)[0]).resize(SIZE, 0)) > 0
            if truth.any() and (row := click_twice(client, enlarged(scenes.jpegs[number]), truth)):
                rows.append(row)
    columns = list(zip(*rows, strict=True))
    medians = [1e3 * statistics.median(column) for column in columns[:4]]
    return ClickFigures(
        medians[0], medians[1], ratio(columns[0], columns[1]),
        medians[2], medians[3], ratio(columns[2], columns[3]),
        statistics.fmean(columns[4]), statistics.fmean(columns[5]),
    )  # fmt: skip


def click_twice(client: HTTPConnection, jpeg: bytes, truth: np.ndarray) -> tuple[float, ...] | None:
    """Seconds of both clicks over HTTP, of both on the device, and IoU after each; None if the first click
    leaves no error."""
    clicks = [(*innermost(truth), 1)]
    first = segment(client, jpeg, clicks)
    errors = first.mask != truth
    if not errors.any():
        return None
    x, y = innermost(errors)
    clicks.append((x, y, int(truth[y, x])))
    second = segment(client, jpeg, clicks)
    return (
        first.seconds, second.seconds, first.compute, second.compute,
        iou(first.mask, truth), iou(second.mask, truth),
    )  # fmt: skip


def ratio(first: tuple[float, ...], second: tuple[float, ...]) -> float:
    """The median of the ratios."""
    return statistics.median(a / b for a, b in zip(first, second, strict=True))


@dataclass(frozen=True, slots=True)
class MaskResponse:
    """One mask, and its time over HTTP and on the device in seconds."""

    seconds: float
    compute: float
    mask: np.ndarray
    """(H, W) bool."""


def segment(client: HTTPConnection, jpeg: bytes, clicks: list[tuple[int, int, int]]) -> MaskResponse:
    """The mask for clicks (x, y, 1 for object or 0 for background). Raises RuntimeError unless the status is
    200."""
    points = ";".join(",".join(map(str, click)) for click in clicks)
    started = time.perf_counter()
    client.request("POST", f"/segment?points={points}", jpeg, {"content-type": "image/jpeg"})
    response = client.getresponse()
    body = response.read()
    seconds = time.perf_counter() - started
    if response.status != 200:
        raise RuntimeError(f"/segment answered {response.status}: {body[:200]!r}")
    answer = json.loads(body)
    mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["mask"].partition(",")[2])))) > 0
    return MaskResponse(seconds, answer["timings_ms"]["compute"] / 1e3, mask)


def innermost(region: np.ndarray) -> tuple[int, int]:
    """x and y of the pixel furthest from the border of the region: the last one left by erosion."""
    remaining, last = region, region
    while remaining.any():
        last = remaining
        padded = np.pad(remaining, 1)
        remaining = remaining & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    rows, columns = np.nonzero(last)
    return int(columns[len(columns) // 2]), int(rows[len(rows) // 2])


def iou(mask: np.ndarray, truth: np.ndarray) -> float:
    """Intersection over union of two boolean masks."""
    return float((mask & truth).sum() / (mask | truth).sum())


def enlarged(jpeg: bytes, size: tuple[int, int] = SIZE) -> bytes:
    """The image as a JPEG of this size."""
    out = io.BytesIO()
    Image.open(io.BytesIO(jpeg)).resize(size, Image.Resampling.BICUBIC).save(out, "JPEG", quality=85)
    return out.getvalue()
