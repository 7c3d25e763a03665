"""The shipped held-out scenes as a catalogue: what is sent, and what would be the right answer."""

import io
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from foveate.core.errors import SetupError
from foveate.models.zoo.heldout import heldout

ImageSize = Literal["scene", "640x480"]
WIDTH, HEIGHT, QUALITY = 640, 480, 90


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Pictures in the order of their popularity."""

    jpegs: tuple[bytes, ...]
    labels: tuple[str, ...]
    """The right answer to each."""

    def __len__(self) -> int:
        return len(self.jpegs)


def catalogue(size: ImageSize, count: int, seed: int) -> Catalogue:
    """`count` held-out scenes, all of them where it is 0, in an order drawn from the seed. Raises
    SetupError where there are not so many."""
    scenes = heldout()
    if not 0 <= count <= len(scenes):
        raise SetupError(f"there are {len(scenes)} held-out scenes, so no catalogue of {count}")
    order = np.random.default_rng([seed, 2]).permutation(len(scenes))[: count or None]
    make = enlarged if size == "640x480" else bytes
    return Catalogue(
        tuple(make(scenes.jpegs[i]) for i in order), tuple(scenes.labels[scenes.targets[i]] for i in order)
    )


def enlarged(jpeg: bytes) -> bytes:
    """A square scene in the middle of a 640x480 JPEG, mirrored at its sides, so that the centre crop a
    model is given still is the scene: a photograph's cost of decoding without another answer."""
    scene = Image.open(io.BytesIO(jpeg)).convert("RGB").resize((HEIGHT, HEIGHT), Image.Resampling.BICUBIC)
    side = (WIDTH - HEIGHT) // 2
    wide = np.pad(np.asarray(scene), ((0, 0), (side, side), (0, 0)), mode="symmetric")
    file = io.BytesIO()
    Image.fromarray(wide).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()
