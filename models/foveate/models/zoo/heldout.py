"""The shipped held-out scenes: labelled images, clips and questions for profiling and tests."""

import io
import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Labelled images of one size."""

    labels: tuple[str, ...]
    """Class names."""
    jpegs: tuple[bytes, ...]
    targets: NDArray[np.int64]
    """(N,): class index of each image."""
    masks: tuple[bytes, ...] = ()
    """A PNG per image: 0 is the background, k the class with index k - 1."""

    def __len__(self) -> int:
        return len(self.jpegs)

    def pixels(self, side: int) -> Iterator[NDArray[np.uint8]]:
        """Each image as (side, side, 3) RGB, in order."""
        for data in self.jpegs:
            image = Image.open(io.BytesIO(data)).convert("RGB")
            if image.size != (side, side):
                image = image.resize((side, side), Image.Resampling.BICUBIC)
            yield np.asarray(image)


@dataclass(frozen=True, slots=True)
class HeldOutClips:
    """Labelled clips of one size."""

    motions: tuple[str, ...]
    """Class names of motions."""
    labels: tuple[str, ...]
    """Class names of the objects that move."""
    videos: tuple[bytes, ...]
    """MP4 files."""
    targets: NDArray[np.int64]
    """(N,): motion index of each clip."""
    masks: tuple[bytes, ...]
    """A PNG per clip: the masks of frames evenly spread over it, one below the other. 0 is the background,
    k the label with index k - 1."""

    def __len__(self) -> int:
        return len(self.videos)


@dataclass(frozen=True, slots=True)
class AskedQuestion:
    """A question about an image."""

    kind: str
    """What it asks for, such as "colour"."""
    question: str
    answer: str
    """The only right answer."""


@dataclass(frozen=True, slots=True)
class AskedImage:
    """An image with questions about it."""

    jpeg: bytes
    questions: tuple[AskedQuestion, ...]


def normalised(answer: str) -> str:
    """An answer without case, outer spaces and the final period: what right answers are compared by."""
    return answer.strip().removesuffix(".").rstrip().casefold()


def heldout_questions() -> tuple[AskedImage, ...]:
    """Read the archive of scenes with questions that is installed with the package."""
    raw = (files("foveate.models") / "zoo" / "heldout-questions.zip").read_bytes()
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        scenes = json.loads(archive.read("questions.json"))["scenes"]
        return tuple(
            AskedImage(
                archive.read(f"{i:04d}.jpg"), tuple(AskedQuestion(**row) for row in scene["questions"])
            )
            for i, scene in enumerate(scenes)
        )


def heldout_clips() -> HeldOutClips:
    """Read the archive of clips that is installed with the package."""
    index, videos, masks = _read_archive("heldout-clips.zip", "clips", "mp4")
    targets = np.array([clip["motion"] for clip in index["clips"]], np.int64)
    return HeldOutClips(tuple(index["motions"]), tuple(index["labels"]), videos, targets, masks)


def heldout() -> HeldOut:
    """Read the archive of images that is installed with the package."""
    index, jpegs, masks = _read_archive("heldout.zip", "scenes", "jpg")
    targets = np.array([scene["objects"][0]["label"] for scene in index["scenes"]], np.int64)
    return HeldOut(tuple(index["labels"]), jpegs, targets, masks)


def _read_archive(name: str, key: str, suffix: str) -> tuple[Any, tuple[bytes, ...], tuple[bytes, ...]]:
    """An archive's index, and the media and masks of the index's entry `key`, in order."""
    raw = (files("foveate.models") / "zoo" / name).read_bytes()
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        index = json.loads(archive.read(f"{key}.json"))
        media, masks = (
            tuple(archive.read(f"{i:04d}.{kind}") for i in range(len(index[key]))) for kind in (suffix, "png")
        )
    return index, media, masks
