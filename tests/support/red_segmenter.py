"""A segmentation model without weights: it finds red pixels, so that tests can check masks exactly."""

import base64
import io
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
from PIL import Image

from foveate.core.model import InputSpec
from foveate.core.outcome import ClassMaps, Result
from foveate.core.plan import Plan
from tests.support.fake_runner import FakeRunner
from tests.support.gateway import Gateway, serving
from tests.support.media_samples import encode, red_corner


class RedSegmenter(FakeRunner):
    """Gives red pixels the class "red", on a grid of 8 x 8."""

    def __init__(self) -> None:
        super().__init__("red-seg", spec=InputSpec())
        self.card = replace(self.card, task="segment", labels=("green", "red"))

    def stack(self, media: Sequence[Any], plan: Plan) -> list[Any]:
        return list(media)

    def run(self, batch: list[Any], plan: Plan) -> list[Result | Exception]:
        super().run(batch, plan)
        return [self.segment(pixels) for pixels in batch]

    def segment(self, pixels: np.ndarray) -> Result:
        """The result for pixels (32, 32, 3)."""
        cells = pixels.reshape(8, 4, 8, 4, 3).mean((1, 3))
        red = np.where(cells[..., 0] > cells[..., 2], 3.0, -3.0)
        maps = ClassMaps((0, 2), np.stack([-red, red]).astype(np.float16))
        return Result(np.array([0.5, 0.0, 0.5], np.float32), 5, 12, 0.5, maps=maps)


def red_corner_png(width: int = 320, height: int = 240) -> bytes:
    """A blue image with a red upper left quarter."""
    return encode(red_corner(1, (width, height)), "PNG")


def image_of(url: str) -> Image.Image:
    """The image in a data URL."""
    head, _, data = url.partition(",")
    assert head in ("data:image/png;base64", "data:image/jpeg;base64")
    return Image.open(io.BytesIO(base64.b64decode(data)))


def serving_red(
    runner: RedSegmenter | None = None, **settings: Any
) -> AbstractAsyncContextManager[Gateway[RedSegmenter]]:
    """A gateway with this model and a fake classifier."""
    return serving(runner or RedSegmenter(), FakeRunner("classifier"), **settings)


async def segment(gateway: Gateway[Any], body: bytes, query: str = "", **headers: Any) -> httpx.Response:
    """Send an image to /segment."""
    return await gateway.post(f"/segment{query}", body, **headers)
