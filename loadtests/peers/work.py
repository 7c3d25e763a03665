"""What every server does with a picture: Foveate's own decoding and network at full, nothing else."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.gateway.media.image import decode_image
from foveate.models.loading.load import ImageModelLoader
from foveate.models.loading.loader import LoadOptions
from loadtests.peers.job import Job

Pixels = NDArray[np.uint8]
Answer = dict[str, Any]
MAX_PIXELS = 50_000_000


class Work:
    """The model, warm, with as many threads as there are cores.

    Make it on the thread that will use it, and use it on no other: a second pool of OpenMP threads in a
    process slows both down.
    """

    def __init__(self, job: Job) -> None:
        self.runner = (
            ImageModelLoader()
            .load_unprofiled(job.weights, LoadOptions(job.precision, "cpu", max_batch=job.batch))
            .runner
        )
        self.full, self.labels, self.spec = self.runner.full, self.runner.card.labels, self.runner.card.input

    def decode(self, jpeg: bytes) -> Pixels:
        if self.spec is None:
            raise TypeError(f"{self.full.variant} takes no pictures")
        return decode_image(jpeg, self.spec, self.full.image_size, MAX_PIXELS)

    def answer(self, jpegs: Sequence[bytes]) -> list[Answer]:
        """Decode and classify: one after the other, for a forward already uses every core."""
        return self.classify([self.decode(jpeg) for jpeg in jpegs])

    def classify(self, pictures: Sequence[Pixels]) -> list[Answer]:
        """One answer a picture, in the shape of Foveate's."""
        return [self._answer(r) for r in self.runner.run(self.runner.stack(pictures, self.full), self.full)]

    def _answer(self, result: Any) -> Answer:
        if isinstance(result, Exception):
            raise result
        index = int(result.scores.argmax())
        return {"predictions": [{"label": self.labels[index], "index": index}]}
