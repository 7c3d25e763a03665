"""The shipped held-out scenes: labelled pictures for profiling and tests."""

import io
import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray
from PIL import Image


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Labelled pictures of one size."""

    labels: tuple[str, ...]
    jpegs: tuple[bytes, ...]
    targets: NDArray[np.int64]
    """(N,) class index of each picture."""
    masks: tuple[bytes, ...] = ()
    """PNG for each picture: 0 the background, k the class with index k - 1."""

    def __len__(self) -> int:
        return len(self.jpegs)

    def pixels(self, side: int) -> Iterator[NDArray[np.uint8]]:
        """Every picture as (side, side, 3) RGB, in order."""
        for data in self.jpegs:
            image = Image.open(io.BytesIO(data)).convert("RGB")
            if image.size != (side, side):
                image = image.resize((side, side), Image.Resampling.BICUBIC)
            yield np.asarray(image)


@dataclass(frozen=True, slots=True)
class HeldOutClips:
    """Labelled clips of one size."""

    motions: tuple[str, ...]
    labels: tuple[str, ...]
    """What moves is one of these."""
    films: tuple[bytes, ...]
    """MP4."""
    targets: NDArray[np.int64]
    """(N,) index of each clip's motion."""
    masks: tuple[bytes, ...]
    """PNG for each clip: of frames evenly spread over it, one below the other, each pixel's class; 0 the
    background, k the label with index k - 1."""

    def __len__(self) -> int:
        return len(self.films)


def heldout_clips() -> HeldOutClips:
    """Read the archive that is installed with the package."""
    raw = (files("foveate.models") / "zoo" / "heldout-clips.zip").read_bytes()
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        index = json.loads(archive.read("clips.json"))
        films, masks = (
            tuple(archive.read(f"{i:04d}.{kind}") for i in range(len(index["clips"])))
            for kind in ("mp4", "png")
        )
    targets = np.array([clip["motion"] for clip in index["clips"]], np.int64)
    return HeldOutClips(tuple(index["motions"]), tuple(index["labels"]), films, targets, masks)


def heldout() -> HeldOut:
    """Read the archive that is installed with the package."""
    raw = (files("foveate.models") / "zoo" / "heldout.zip").read_bytes()
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        index = json.loads(archive.read("scenes.json"))
        jpegs, masks = (
            tuple(archive.read(f"{i:04d}.{kind}") for i in range(len(index["scenes"])))
            for kind in ("jpg", "png")
        )
    targets = np.array([scene["objects"][0]["label"] for scene in index["scenes"]], np.int64)
    return HeldOut(tuple(index["labels"]), jpegs, targets, masks)
