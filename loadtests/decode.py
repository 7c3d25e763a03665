"""Compare JPEG decoders on the task of the gateway, bytes to 224 x 224 RGB: `make bench-decode`."""

import argparse
import importlib.util
import io
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image

from foveate.core.model import InputSpec
from foveate.gateway.media.image import Pixels, decode_image
from loadtests.report import PACKAGES, RENDER_HELP, Figures, cell, read, render, table, write

SIZES = {"640": (640, 480), "1920": (1920, 1080)}
CROP, CROP_PCT, REPEATS = 224, 0.875, 201
Decoder = Callable[[bytes], Pixels]


def photograph(width: int, height: int, seed: int = 0) -> bytes:
    """A JPEG (quality 90, 4:2:0) of noise at several scales with hard-edged shapes, like a photograph."""
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
    """Width and height of the full image after its shorter side is resized."""
    side, shorter = math.floor(CROP / CROP_PCT), min(width, height)
    return side * width // shorter, side * height // shorter


def fit(image: Image.Image, width: int, height: int, shrink: int = 1) -> Pixels:
    """Resize with Pillow and crop; (width, height) is the size of the full image, before shrinking."""
    box: list[float] = []
    for full, scaled in zip((width, height), scaled_size(width, height), strict=True):
        start = round((scaled - CROP) / 2)
        box += [start * full / scaled / shrink, (start + CROP) * full / scaled / shrink]
    crop = box[0], box[2], box[1], box[3]
    return np.asarray(image.resize((CROP, CROP), Image.Resampling.BICUBIC, crop))


def shrink_for(width: int, height: int, margin: float) -> int:
    """The power of two by which a decoder may shrink and still keep `margin` times the size that the resize
    needs."""
    factor = min(
        full / scaled for full, scaled in zip((width, height), scaled_size(width, height), strict=True)
    )
    return next((n for n in (8, 4, 2) if n * margin <= factor), 1)


def pillow_full(data: bytes) -> Pixels:
    """Pillow without shrinking: the reference for accuracy."""
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
    scaled = scaled_size(pixels.shape[1], pixels.shape[0])
    resized: Any = cv2.resize(pixels, scaled, interpolation=cv2.INTER_AREA)
    left, top = (round((side - CROP) / 2) for side in scaled)
    return np.ascontiguousarray(resized[top : top + CROP, left : left + CROP], np.uint8)


def candidates() -> dict[str, Decoder]:
    """The decoders by name; OpenCV only if it is installed."""
    decoders: dict[str, Decoder] = {
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
        decoders["opencv"] = with_opencv
        decoders["opencv_area"] = lambda data: with_opencv(data, area=True)
    return decoders


def measure(decoders: dict[str, Decoder], data: bytes) -> Figures:
    """Median milliseconds of processor time of this thread for each decoder, in interleaved rounds.

    On a busy machine the wall clock mostly measures the operating system's scheduler.
    """
    times: dict[str, list[float]] = {name: [] for name in decoders}
    for _ in range(REPEATS + 3):
        for name, decode in decoders.items():
            started = time.thread_time()
            decode(data)
            times[name].append((time.thread_time() - started) * 1e3)
    return {name: round(statistics.median(values[3:]), 3) for name, values in times.items()}


def run() -> Figures:
    """Figures `<decoder>_<width>_ms`, `_mad` and `_max`: time, mean and maximum difference from a full Pillow
    decode."""
    results: Figures = {}
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


def page(results: Figures) -> str:
    """The Markdown page."""
    suffix = "_640_ms"
    names = [key.removesuffix(suffix) for key in results if key.endswith(suffix)]
    heads = [f"{w} x {h} {what}" for w, h in SIZES.values() for what in ("ms", "mean diff", "max diff")]
    keys = [f"{size}_{kind}" for size in SIZES for kind in ("ms", "mad", "max")]
    rows = [[name, *(cell(results, f"{name}_{key}", "{:g}") for key in keys)] for name in names]
    return f"""# JPEG decoding

Each decoder turns a synthetic JPEG (quality 90, 4:2:0) into {CROP} x {CROP} RGB with crop_pct {CROP_PCT} and
bicubic resizing. Times are the median of {REPEATS} interleaved rounds, in processor time of one thread.
Differences are from a full Pillow decode with the same resize, in steps of 1/255. Scaled decodes
keep at least twice the size that the resize needs; `margin1` keeps just enough. `opencv_area` resizes with
another filter than the one that models expect. `make bench-decode` repeats the bench.

{table(["decoder", *heads], rows)}

`gateway` is the `decode_image` of the server: simplejpeg with limits and orientation. It uses simplejpeg
because its strict mode refuses damaged data, which Pillow fills with grey. It does not use the area resize of
OpenCV, because checkpoints are not trained with that filter."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--render", action="store_true", help=RENDER_HELP)
    if parser.parse_args().render:
        print(render("decode", page(read("decode"))).read_text())
        return
    results = run()
    print(write("decode", results, page(results), packages=("pillow", "simplejpeg", *PACKAGES)).read_text())


if __name__ == "__main__":
    main()
