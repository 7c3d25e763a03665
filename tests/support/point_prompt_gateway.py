"""A gateway with a small model that takes point prompts, and the requests that tests send to it."""

import base64
import io
import threading
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import httpx
import numpy as np
from PIL import Image

from foveate.cache.memory import MemoryCache
from foveate.core.errors import RunFailed
from foveate.core.outcome import Result
from foveate.core.plan import Plan
from foveate.models.runners.image import TorchRunner
from foveate.models.weights.checkpoint import Checkpoint
from foveate.models.weights.family import Family
from tests.support.dense_heads import dense_checkpoint
from tests.support.gateway import Gateway, serving
from tests.support.media_samples import encode, scene
from tests.support.point_prompt_heads import with_point_prompts


class GatedRunner(TorchRunner):
    """The real model. It counts the images that it runs; it can be held, and made to fail."""

    def __init__(self, checkpoint: Checkpoint | Family) -> None:
        super().__init__(checkpoint)
        self.images, self.failures_left = 0, 0
        self.entered, self.gate = threading.Semaphore(0), threading.Event()
        self.gate.set()

    def run(self, batch: Any, plan: Plan) -> Sequence[Result | Exception]:
        self.entered.release()
        assert self.gate.wait(20)
        self.images += len(batch)
        if self.failures_left:
            self.failures_left -= 1
            return [RunFailed("the test made it fail") for _ in batch]
        return super().run(batch, plan)


def serving_points(clicks: bool = True, **settings: Any) -> AbstractAsyncContextManager[Gateway[GatedRunner]]:
    """A gateway without a response cache. clicks: with a point-prompt model."""
    runner = GatedRunner(with_point_prompts() if clicks else dense_checkpoint())
    return serving(runner, **({"cache_bytes": 0} | settings))


def scene_png(seed: int = 0, size: tuple[int, int] = (320, 240)) -> bytes:
    """An image with colours and edges. size: width and height."""
    return encode(scene(*size, seed), "PNG")


async def click(
    gateway: Gateway[Any], body: bytes, points: str, query: str = "", **headers: Any
) -> httpx.Response:
    """Send an image with points, as in `120,80;40,10,0`."""
    return await gateway.post(f"/segment?points={points.replace(';', '%3B')}{query}", body, **headers)


def mask_of(response: httpx.Response) -> np.ndarray:
    """The mask (H, W) in a response, JSON or PNG."""
    assert response.status_code == 200, response.text
    data = response.content
    if response.headers["content-type"] == "application/json":
        data = base64.b64decode(response.json()["mask"].partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(data)))


def feature_store(gateway: Gateway[Any]) -> MemoryCache:
    """The store of cached features."""
    store = gateway.app.state.features
    assert isinstance(store, MemoryCache)
    return store
