"""Compares JPEG decoders on the gateway's task, bytes to 224 x 224 RGB. Writes docs/benchmarks/decode.*."""

import importlib.util
import io
import json
import math
import os
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from foveate.core.model import InputSpec
from foveate.gateway.media import decode_image

OUT = Path(__file__).resolve().parents[1] / "docs" / "benchmarks"
SIZES = {"640": (640, 480), "1920": (1920, 1080)}
CROP, CROP_PCT, REPEATS = 224, 0.875, 41
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


def run() -> dict[str, Any]:
    """Flat: `<decoder>_<width>_ms`, then `_mad` and `_max`, the difference from a full Pillow decode."""
    results: dict[str, Any] = {}
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


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    packages = {f"{name}_version": version(name) for name in ("pillow", "simplejpeg")}
    if importlib.util.find_spec("cv2"):
        packages["opencv_version"] = version("opencv-python-headless")
    load = round(os.getloadavg()[0], 1)
    date = datetime.now(UTC).date().isoformat()
    return {
        "date": date,
        "cpu": cpu,
        "cores": os.cpu_count(),
        "load_average": load,
        "repeats": REPEATS,
        **packages,
    }


def report(results: dict[str, Any]) -> str:
    """The same numbers for people."""
    rows = []
    for name in candidates():
        cells = [f"{results[f'{name}_{s}_{k}']}" for s in SIZES for k in ("ms", "mad", "max")]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    about = ", ".join(f"{key.replace('_', ' ')} {results[key]}" for key in machine())
    heads = " | ".join(f"{w} x {h} ms | mean diff | max diff" for w, h in SIZES.values())
    return "\n".join(
        [
            "# JPEG decoding",
            "",
            f"From a drawn JPEG (quality 90, 4:2:0) to {CROP} x {CROP} RGB, crop_pct {CROP_PCT}, bicubic.",
            "Median processor time of one thread, candidates interleaved, measured beside other work (the",
            "load average says how much): compare ratios. Differences are from a full Pillow decode with the",
            "same resize, in steps of 1/255. Scaled decodes keep at least twice what the resize needs,",
            "`margin1` just enough. `opencv_area` resizes with another filter than models expect.",
            "",
            "`gateway` is the server's `decode_image`: simplejpeg with limits and orientation. simplejpeg is",
            "no faster than Pillow's draft mode; it is used because its strict mode refuses damaged data,",
            "which Pillow fills with grey.",
            "",
            f"{about}.",
            "",
            f"| decoder | {heads} |",
            f"|---|{'---:|' * 3 * len(SIZES)}",
            *rows,
            "",
            "Run again: `python -m loadtests.bench_decode`.",
            "",
        ]
    )


def main() -> None:
    """Measure, write both files, print the table."""
    results = {**machine(), **run()}
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "decode.json").write_text(json.dumps(results, indent=1) + "\n")
    (OUT / "decode.md").write_text(report(results))
    print(report(results))


if __name__ == "__main__":
    main()
