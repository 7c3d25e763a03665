"""What reading a long clip takes: 16 frames of ten minutes of 720p, in a process of its own.

`python -m loadtests.clip_memory` writes the clip to a temporary folder first.
"""

import json
import multiprocessing
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.stream import VideoStream

from foveate.gateway.media.frame_transform import FrameBox
from foveate.gateway.media.image import Pixels
from foveate.gateway.media.image_format import Size
from foveate.gateway.media.video import decode_clip
from foveate.gateway.media.video_demuxer import ClipLimits

SIZE, RATE, SECONDS, GOP = (1280, 720), 25, 600, 250
FRAMES, SIDE = 16, 224
DISTINCT = 25


def pattern(step: int) -> Pixels:
    """A texture that moves by 8 pixels a step, and is back where it was after `DISTINCT` steps."""
    rows, columns = np.mgrid[: SIZE[1], : SIZE[0]]
    wave = np.sin((columns + 8 * step) * (2 * np.pi / (8 * DISTINCT)))
    grain = np.random.default_rng(step).normal(size=(SIZE[1], SIZE[0], 3)) * 5
    bars = 127 + 60 * wave + 30 * np.sin(rows / 17)
    pixels: Pixels = np.clip(bars[..., None] + grain, 0, 255).astype(np.uint8)
    return pixels


def write_clip(path: Path) -> None:
    """Ten minutes of H.264 with B-frames, a whole frame every ten seconds."""
    unit = Fraction(1, RATE)
    frames = [
        av.VideoFrame.from_ndarray(pattern(step)).reformat(format="yuv420p") for step in range(DISTINCT)
    ]
    options = {"preset": "ultrafast", "bf": "2", "b": "800k"}
    with av.open(path, "w", "mp4") as output:
        video = output.add_stream("libx264", rate=RATE, options=options)
        assert isinstance(video, VideoStream)  # noqa: S101 -- what that codec makes
        video.width, video.height = SIZE
        video.pix_fmt = "yuv420p"
        video.codec_context.gop_size = GOP
        video.codec_context.thread_count = 1
        for number in range(RATE * SECONDS):
            frame = frames[number % DISTINCT]
            frame.pts, frame.time_base = number, unit
            output.mux(video.encode(frame))
        output.mux(video.encode(None))


def whole(size: Size) -> list[FrameBox]:
    """All of a frame."""
    return [(0, 0, *size)]


def resident_mb(field: str) -> float:
    """VmRSS: what this process has in memory now; VmHWM: had at most. Of Linux, because getrusage starts
    from what the parent process had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def read_clip(path: Path) -> dict[str, float]:
    """Decode it, and tell what that took beyond what the imports had."""
    before = resident_mb("VmRSS")
    began = time.monotonic()
    clip = decode_clip(path, FRAMES, SIDE, whole, "bicubic", ClipLimits(decode_s=600))
    seconds = time.monotonic() - began
    peak = resident_mb("VmHWM")
    return {
        "peak_mb": round(peak - before, 1),
        "total_mb": round(peak, 1),
        "seconds": round(seconds, 2),
        "decoded": clip.decoded,
        "file_mb": round(path.stat().st_size / 2**20, 1),
    }


def measure(folder: Path) -> dict[str, float]:
    """The clip is written to the folder, unless it is there."""
    path = folder / "ten_minutes_720p.mp4"
    if not path.exists():
        write_clip(path)
    with multiprocessing.get_context("spawn").Pool(1) as fresh:
        return fresh.apply(read_clip, (path,)) | {"frames": RATE * SECONDS}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as there:
        print(json.dumps(measure(Path(there))))
