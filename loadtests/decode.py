"""JPEG decoders compared on the gateway's task, bytes to 224 x 224 RGB: `make bench-decode`."""

import importlib.util
import io
import math
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from foveate.core.model import InputSpec
from foveate.gateway.media.image import decode_image
from loadtests.report import table, write

SIZES = {"640": (640, 480), "1920": (1920, 1080)}
CROP, CROP_PCT, REPEATS = 224, 0.875, 201
Pixels = NDArray[np.uint8]
Decoder = Callable[[bytes], Pixels]


def photograph(width: int, height: int, seed: int = 0) -> bytes:
    """A JPEG (quality 90, 4:2:0) of noise at several scales with hard-edged shapes, as photographs have."""
    random = np.random.default_rng(seed)
    total = np.zeros((height, width, 3))
    for grain, weight in ((4, 2), (16, 4), (64, 8), (256, 16)):
        coarse = random.integers(0, 256, (height // grain + 2, width // grain + 2, 3), dtype=np.uint8)
        total += np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)) * (
            weight / 30
        )
    rows, columns = np.mgrid[:height, :width]
    for _ in range(12):
        x, y, radius = random.random(3) * (width, height, height / 6)
        total[(columns - x) ** 2 + (rows - y) ** 2 < radius**2] = random.integers(0, 256, 3)
    file = io.BytesIO()
    Image.fromarray(total.astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def scaled_size(width: int, height: int) -> tuple[int, int]:
    """What the whole picture measures once its shorter side is resized."""
    side, shorter = math.floor(CROP / CROP_PCT), min(width, height)
    return side * width // shorter, side * height // shorter


def fit(image: Image.Image, width: int, height: int, shrink: int = 1) -> Pixels:
    """The resize every Pillow-resizing candidate shares; (width, height) is the full picture's."""
    box: list[float] = []
    for full, whole in zip((width, height), scaled_size(width, height), strict=True):
        start = round((whole - CROP) / 2)
        box += [start * full / whole / shrink, (start + CROP) * full / whole / shrink]
    view = box[0], box[2], box[1], box[3]
    return np.asarray(image.resize((CROP, CROP), Image.Resampling.BICUBIC, view))


def shrink_for(width: int, height: int, margin: float) -> int:
    """The power of two by which a decoder may shrink, leaving `margin` times what the resize needs."""
    room = min(full / whole for full, whole in zip((width, height), scaled_size(width, height), strict=True))
    return next((n for n in (8, 4, 2) if n * margin <= room), 1)


def pillow_full(data: bytes) -> Pixels:
    """Pillow, every pixel decoded: the reference for accuracy."""
    image = Image.open(io.BytesIO(data))
    return fit(image, *image.size)


def pillow_draft(data: bytes, margin: float = 2) -> Pixels:
    """Pillow, decoded at 1/2, 1/4 or 1/8 by the inverse transform."""
    image = Image.open(io.BytesIO(data))
    full = image.size
    shrink = shrink_for(*full, margin)
    image.draft(None, (full[0] // shrink, full[1] // shrink))
    return fit(image, *full, shrink)


def with_simplejpeg(data: bytes, margin: float = 2) -> Pixels:
    """simplejpeg in strict mode, decoded at 1/2, 1/4 or 1/8; Pillow resizes."""
    height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    n = shrink_for(width, height, margin)
    pixels = simplejpeg.decode_jpeg(data, "RGB", min_width=-(-width // n), min_height=-(-height // n))
    return fit(Image.fromarray(pixels), width, height, n)


def with_opencv(data: bytes, margin: float = 2, area: bool = False) -> Pixels:
    """OpenCV's reduced decode; Pillow's resize, or OpenCV's own area resize, which filters differently."""
    import cv2

    height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    n = shrink_for(width, height, margin)
    flag = cv2.IMREAD_COLOR if n == 1 else getattr(cv2, f"IMREAD_REDUCED_COLOR_{n}")
    pixels: Any = cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), flag), cv2.COLOR_BGR2RGB)
    if not area:
        return fit(Image.fromarray(pixels), width, height, n)
    whole = scaled_size(pixels.shape[1], pixels.shape[0])
    resized: Any = cv2.resize(pixels, whole, interpolation=cv2.INTER_AREA)
    left, top = (round((side - CROP) / 2) for side in whole)
    return np.ascontiguousarray(resized[top : top + CROP, left : left + CROP], np.uint8)


def candidates() -> dict[str, Decoder]:
    """By the name under which results are kept; OpenCV only where it is installed."""
    found: dict[str, Decoder] = {
        "pillow_full": pillow_full,
        "pillow_draft": pillow_draft,
        "pillow_draft_margin1": lambda data: pillow_draft(data, 1),
        "simplejpeg": with_simplejpeg,
        "simplejpeg_margin1": lambda data: with_simplejpeg(data, 1),
        "simplejpeg_full": lambda data: with_simplejpeg(data, math.inf),
        "gateway": lambda data: decode_image(data, InputSpec(CROP_PCT), CROP, 10**8),
    }
    if importlib.util.find_spec("cv2"):
        import cv2

        cv2.setNumThreads(1)
        found["opencv"] = with_opencv
        found["opencv_area"] = lambda data: with_opencv(data, area=True)
    return found


def measure(decoders: dict[str, Decoder], data: bytes) -> dict[str, float]:
    """Median milliseconds of this thread's processor time each, in interleaved rounds.

    Processor time, because on a busy machine the wall clock mostly tells when the scheduler took over.
    """
    times: dict[str, list[float]] = {name: [] for name in decoders}
    for _ in range(REPEATS + 3):
        for name, decode in decoders.items():
            started = time.thread_time()
            decode(data)
            times[name].append((time.thread_time() - started) * 1e3)
    return {name: round(statistics.median(values[3:]), 3) for name, values in times.items()}


def run() -> dict[str, float]:
    """Flat: `<decoder>_<width>_ms`, then `_mad` and `_max`, the difference from a full Pillow decode."""
    results: dict[str, float] = {}
    for label, size in SIZES.items():
        data = photograph(*size)
        results[f"jpeg_{label}_bytes"] = len(data)
        expected = pillow_full(data).astype(int)
        for name, milliseconds in measure(candidates(), data).items():
            difference = abs(candidates()[name](data).astype(int) - expected)
            results[f"{name}_{label}_ms"] = milliseconds
            results[f"{name}_{label}_mad"] = round(float(difference.mean()), 3)
            results[f"{name}_{label}_max"] = int(difference.max())
    return results


def page(results: dict[str, float]) -> str:
    """The same numbers for people."""
    heads = [f"{w} x {h} {what}" for w, h in SIZES.values() for what in ("ms", "mean diff", "max diff")]
    keys = [f"{size}_{kind}" for size in SIZES for kind in ("ms", "mad", "max")]
    rows = [[name, *(f"{results[f'{name}_{key}']:g}" for key in keys)] for name in candidates()]
    versions = ", ".join(f"{name} {version(name)}" for name in ("pillow", "simplejpeg"))
    return f"""# JPEG decoding

From a drawn JPEG (quality 90, 4:2:0) to {CROP} x {CROP} RGB, crop_pct {CROP_PCT}, bicubic. Median of
{REPEATS} interleaved rounds, processor time of one thread, {versions}. Differences
are from a full
Pillow decode with the same resize, in steps of 1/255. Scaled decodes keep at least twice what the
resize needs, `margin1` just enough. `opencv_area` resizes with another filter than models expect.
`make bench-decode` repeats it.

`gateway` is the server's `decode_image`: simplejpeg with limits and orientation. simplejpeg is about as
fast as Pillow's draft mode; it is used because its strict mode refuses damaged data, which Pillow fills
with grey. OpenCV's resize would be faster on small pictures and is not what checkpoints were made with.

{table(["decoder", *heads], rows)}"""


if __name__ == "__main__":
    measured = run()
    print(write("decode", measured, page(measured)).read_text())
