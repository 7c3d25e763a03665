"""The work that every server does for an image: the decoder of Foveate and its network at the full plan."""

from collections.abc import Sequence
from typing import Any

from foveate.gateway.media.image import Pixels, decode_image
from foveate.models.loading.load import ImageModelLoader
from foveate.models.loading.loader import LoadOptions
from loadtests.peers.config import PeerConfig

PeerAnswer = dict[str, Any]
"""An answer in the JSON form of Foveate."""
MAX_PIXELS = 50_000_000


class PeerInference:
    """The warm model, with one thread per core.

    Create it on the thread that uses it, and use it on no other thread: a second pool of OpenMP threads in a
    process slows both down.
    """

    def __init__(self, config: PeerConfig) -> None:
        options = LoadOptions(config.precision, "cpu", max_batch=config.batch)
        self.runner = ImageModelLoader().load_unprofiled(config.weights, options).runner
        self.full, self.labels, self.spec = self.runner.full, self.runner.card.labels, self.runner.card.input

    def decode(self, jpeg: bytes) -> Pixels:
        """(H, W, 3) uint8 pixels. Raises TypeError if the model takes no images."""
        if self.spec is None:
            raise TypeError(f"{self.full.variant} takes no images")
        return decode_image(jpeg, self.spec, self.full.image_size, MAX_PIXELS)

    def answer(self, jpegs: Sequence[bytes]) -> list[PeerAnswer]:
        """Decode and classify. Images are decoded in sequence, because a forward uses all cores."""
        return self.classify([self.decode(jpeg) for jpeg in jpegs])

    def classify(self, images: Sequence[Pixels]) -> list[PeerAnswer]:
        """One answer per decoded image."""
        return [self._answer(r) for r in self.runner.run(self.runner.stack(images, self.full), self.full)]

    def _answer(self, result: Any) -> PeerAnswer:
        if isinstance(result, Exception):
            raise result
        index = int(result.scores.argmax())
        return {"predictions": [{"label": self.labels[index], "index": index}]}
