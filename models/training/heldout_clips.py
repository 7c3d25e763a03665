"""Make the shipped clips: the held-out set and the examples. `python -m training.heldout_clips`."""

import io
import json
import tempfile
import zipfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from training.emoji import LABELS
from training.heldout import EPOCH, EXAMPLES, ZOO
from training.motions import NAMES, Film

CLIPS = 24 * len(NAMES)
SIDE, FRAMES, RATE = 144, 32, 16
MASKS = 8
"""Frames of each clip whose pixels are named too: those shown in the middle of so many equal spans."""
MASK_SIDE = 112
QUALITY = "26"
"""x264's constant rate factor."""
SHOWN = {"fox": "circles", "rocket": "moves up", "octopus": "blinks"}
"""What the examples show."""


def encode(frames: list[np.ndarray], rate: int) -> bytes:
    """H.264 in an MP4 whose index comes first."""
    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:  # to move the index it has to be read again
        _write(Path(file.name), frames, rate)
        return Path(file.name).read_bytes()


def _write(path: Path, frames: list[np.ndarray], rate: int) -> None:
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": QUALITY, "preset": "slow"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt, stream.codec_context.time_base = "yuv420p", Fraction(1, rate)
        stream.codec_context.thread_count = 1  # the same bytes on every machine
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def filmed(film: Film, count: int) -> list[np.ndarray]:
    """Frames in the middle of so many equal spans."""
    return [film.frame((i + 0.5) / count)[0] for i in range(count)]


def masks(split: str, index: int) -> bytes:
    """The classes of a film's frames, one below the other, as PNG."""
    film = Film(split, index, MASK_SIDE)
    shown = [((2 * i + 1) * FRAMES // (2 * MASKS) + 0.5) / FRAMES for i in range(MASKS)]
    classes = np.stack([film.frame(at)[1] for at in shown])
    out = io.BytesIO()
    Image.fromarray(classes.reshape(-1, MASK_SIDE)).save(out, "PNG", optimize=True)
    return out.getvalue()


def write_heldout(path: Path, clips: int = CLIPS) -> None:
    told = []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for index in range(clips):
            film = Film("heldout", index, SIDE)
            archive.writestr(zipfile.ZipInfo(f"{index:04d}.mp4", EPOCH), encode(filmed(film, FRAMES), RATE))
            archive.writestr(zipfile.ZipInfo(f"{index:04d}.png", EPOCH), masks("heldout", index))
            told.append({"motion": film.motion, "label": film.label})
        info = zipfile.ZipInfo("clips.json", EPOCH)
        info.compress_type = zipfile.ZIP_DEFLATED
        archive.writestr(info, json.dumps({"motions": NAMES, "labels": LABELS, "clips": told}))


def write_examples(folder: Path) -> None:
    """A few larger clips for the README."""
    for name, motion in SHOWN.items():
        start = NAMES.index(motion)
        films = (Film("examples", start + k * len(NAMES), 480) for k in range(2000))
        film = next(film for film in films if LABELS[film.label] == name)
        (folder / f"{name}.mp4").write_bytes(encode(filmed(film, 75), 25))


def main() -> None:
    write_heldout(ZOO / "heldout-clips.zip")
    write_examples(EXAMPLES)


if __name__ == "__main__":
    main()
