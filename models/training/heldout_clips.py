"""Draw the shipped video clips, the held-out set and the examples: `python -m training.heldout_clips`."""

import io
import json
import tempfile
import zipfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from training.heldout import EPOCH, EXAMPLES, ZOO
from training.labels import LABELS
from training.motions import NAMES, MotionVideo

CLIPS = 24 * len(NAMES)
SIDE, FRAMES, RATE = 144, 32, 16
MASKS = 8
"""Frames of each clip that have a mask: those in the middle of equal spans of time."""
MASK_SIDE = 112
QUALITY = "26"
"""x264's constant rate factor."""
EXAMPLE_MOTIONS = {"fox": "circles", "rocket": "moves up", "octopus": "blinks"}
"""The object and the motion of each example."""


def encode(frames: list[np.ndarray], rate: int) -> bytes:
    """Encode frames (H, W, 3) as H.264, in an MP4 file with the index first."""
    # FFmpeg reads the file again to move the index, so it needs a real file.
    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
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


def sample_frames(video: MotionVideo, count: int) -> list[np.ndarray]:
    """The frames in the middle of `count` equal spans of time."""
    return [video.frame((i + 0.5) / count)[0] for i in range(count)]


def masks(split: str, index: int) -> bytes:
    """The classes of a video's frames as PNG, one frame below the other."""
    video = MotionVideo(split, index, MASK_SIDE)
    times = [((2 * i + 1) * FRAMES // (2 * MASKS) + 0.5) / FRAMES for i in range(MASKS)]
    classes = np.stack([video.frame(time)[1] for time in times])
    out = io.BytesIO()
    Image.fromarray(classes.reshape(-1, MASK_SIDE)).save(out, "PNG", optimize=True)
    return out.getvalue()


def write_heldout(path: Path, clips: int = CLIPS) -> None:
    """Write an archive of clips, masks and labels."""
    descriptions = []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for index in range(clips):
            video = MotionVideo("heldout", index, SIDE)
            encoded = encode(sample_frames(video, FRAMES), RATE)
            archive.writestr(zipfile.ZipInfo(f"{index:04d}.mp4", EPOCH), encoded)
            archive.writestr(zipfile.ZipInfo(f"{index:04d}.png", EPOCH), masks("heldout", index))
            descriptions.append({"motion": video.motion, "label": video.label})
        info = zipfile.ZipInfo("clips.json", EPOCH)
        info.compress_type = zipfile.ZIP_DEFLATED
        archive.writestr(info, json.dumps({"motions": NAMES, "labels": LABELS, "clips": descriptions}))


def write_examples(folder: Path) -> None:
    """Write a few larger clips for the README."""
    for name, motion in EXAMPLE_MOTIONS.items():
        start = NAMES.index(motion)
        videos = (MotionVideo("examples", start + k * len(NAMES), 480) for k in range(2000))
        video = next(video for video in videos if LABELS[video.label] == name)
        (folder / f"{name}.mp4").write_bytes(encode(sample_frames(video, 75), 25))


def main() -> None:
    write_heldout(ZOO / "heldout-clips.zip")
    write_examples(EXAMPLES)


if __name__ == "__main__":
    main()
