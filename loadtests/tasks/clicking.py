"""What a second click costs beside the first, over HTTP and in the server."""

import base64
import http.client
import io
import json
import statistics
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from foveate.models.profiling.evaluation import read_masks
from foveate.models.zoo.heldout import heldout

SIZE = 640, 480


@dataclass(frozen=True, slots=True)
class Clicks:
    """Medians over pictures, in milliseconds, and how well the object was outlined."""

    first_ms: float
    second_ms: float
    speedup: float
    """Of what the client waits for: the median of ratios, picture by picture."""
    first_compute_ms: float
    second_compute_ms: float
    compute_speedup: float
    """Of what runs on the device."""
    iou_first: float
    iou_second: float


def measure(url: str, pictures: int = 60) -> Clicks:
    """One object in each of so many held-out scenes, blown up to SIZE: a click in its middle, then one where
    the answer is most wrong; one connection, one request at a time."""
    scenes = heldout()
    rows: list[tuple[float, ...]] = []
    where = urlsplit(url)
    client = http.client.HTTPConnection(where.hostname or "", where.port, timeout=60)
    for number in range(pictures):
        truth = np.asarray(Image.fromarray(read_masks(scenes.masks[number], 224)[0]).resize(SIZE, 0)) > 0
        if not truth.any():
            continue
        jpeg = enlarged(scenes.jpegs[number])
        clicks = [(*inside(truth), 1)]
        first = ask(client, jpeg, clicks)
        wrong = first.mask != truth
        if not wrong.any():
            continue
        x, y = inside(wrong)
        clicks.append((x, y, int(truth[y, x])))
        second = ask(client, jpeg, clicks)
        rows.append(
            (
                first.seconds,
                second.seconds,
                first.compute,
                second.compute,
                iou(first.mask, truth),
                iou(second.mask, truth),
            )
        )
    columns = list(zip(*rows, strict=True))
    medians = [1e3 * statistics.median(column) for column in columns[:4]]
    return Clicks(
        medians[0], medians[1], ratio(columns[0], columns[1]),
        medians[2], medians[3], ratio(columns[2], columns[3]),
        statistics.fmean(columns[4]), statistics.fmean(columns[5]),
    )  # fmt: skip


def ratio(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    return statistics.median(a / b for a, b in zip(one, other, strict=True))


@dataclass(frozen=True, slots=True)
class Answer:
    seconds: float
    compute: float
    mask: np.ndarray


def ask(client: http.client.HTTPConnection, jpeg: bytes, clicks: list[tuple[int, int, int]]) -> Answer:
    """The mask for these clicks."""
    points = ";".join(",".join(map(str, click)) for click in clicks)
    began = time.perf_counter()
    client.request("POST", f"/segment?points={points}", jpeg, {"content-type": "image/jpeg"})
    response = client.getresponse()
    body = response.read()
    seconds = time.perf_counter() - began
    if response.status != 200:
        raise RuntimeError(f"/segment answered {response.status}: {body[:200]!r}")
    said = json.loads(body)
    mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(said["mask"].partition(",")[2])))) > 0
    return Answer(seconds, said["timings_ms"]["compute"] / 1e3, mask)


def inside(where: np.ndarray) -> tuple[int, int]:
    """x and y of the place that is furthest inside, to about a pixel: where it is eroded last."""
    left, last = where, where
    while left.any():
        last = left
        padded = np.pad(left, 1)
        left = left & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    rows, columns = np.nonzero(last)
    return int(columns[len(columns) // 2]), int(rows[len(rows) // 2])


def iou(mask: np.ndarray, truth: np.ndarray) -> float:
    return float((mask & truth).sum() / (mask | truth).sum())


def enlarged(jpeg: bytes, size: tuple[int, int] = SIZE) -> bytes:
    out = io.BytesIO()
    Image.open(io.BytesIO(jpeg)).resize(size, Image.Resampling.BICUBIC).save(out, "JPEG", quality=85)
    return out.getvalue()
