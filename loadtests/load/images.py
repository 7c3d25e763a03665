"""The shipped held-out scenes as a catalogue: JPEGs to send, with their labels."""

import io
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from foveate.core.errors import SetupError
from foveate.models.zoo.heldout import heldout

SceneSize = Literal["scene", "640x480"]
WIDTH, HEIGHT, QUALITY = 640, 480, 90


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Images, the most popular one first."""

    jpegs: tuple[bytes, ...]
    labels: tuple[str, ...]
    """The label of each image."""

    def __len__(self) -> int:
        return len(self.jpegs)


@dataclass(frozen=True, slots=True)
class ImageRequests:
    """The images of all requests of a run."""

    images: Catalogue
    numbers: NDArray[np.int64]
    """(N,) the image of each request."""

    def body(self, index: int) -> bytes:
        """The JPEG of a request."""
        return self.images.jpegs[int(self.numbers[index])]

    def is_whole(self, body: bytes) -> bool:
        """Whether an answer with status 200 is one; it is parsed after the run."""
        return True

    def label(self, index: int) -> str:
        """The label of its image."""
        return self.images.labels[int(self.numbers[index])]

    def chat(self, index: int, first_token_by_s: float | None) -> None:
        """Images are no chats."""
        return

    @property
    def probe(self) -> bytes:
        """The first image."""
        return self.images.jpegs[0]


def catalogue(size: SceneSize, count: int, seed: int) -> Catalogue:
    """`count` held-out scenes, or all of them for 0, in an order drawn from the seed.

    Raises SetupError if there are fewer scenes.
    """
    scenes = heldout()
    if not 0 <= count <= len(scenes):
        raise SetupError(
            f"--catalogue must be 0 to {len(scenes)}, the number of held-out scenes, not {count}"
        )
    order = np.random.default_rng([seed, 2]).permutation(len(scenes))[: count or None]
    encode = enlarged if size == "640x480" else bytes
    return Catalogue(
        tuple(encode(scenes.jpegs[i]) for i in order), tuple(scenes.labels[scenes.targets[i]] for i in order)
    )


def enlarged(jpeg: bytes) -> bytes:
    """A 640x480 JPEG with the square scene in its middle, mirrored at the left and the right side.

    The centre crop of the model is still the scene, so the label stays the same while decoding costs as much
    as for a photograph.
    """
    scene = Image.open(io.BytesIO(jpeg)).convert("RGB").resize((HEIGHT, HEIGHT), Image.Resampling.BICUBIC)
    side = (WIDTH - HEIGHT) // 2
    padded = np.pad(np.asarray(scene), ((0, 0), (side, side), (0, 0)), mode="symmetric")
    file = io.BytesIO()
    Image.fromarray(padded).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()
