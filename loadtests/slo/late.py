"""Count the forwards of requests that were expired or cancelled when the forward started."""

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from foveate.core.errors import FoveateError
from foveate.core.metrics import Metrics
from foveate.core.model import ModelCard
from foveate.core.outcome import Result
from foveate.core.plan import Plan
from foveate.core.request import Objective, Request
from foveate.engine.device import DeviceExecutor
from foveate.engine.engine import Engine
from foveate.models.loading.load import ImageModelLoader
from foveate.models.runners.base import Pixels
from foveate.models.runners.image import TorchRunner

MODEL = "vit-xs"
REQUESTS, RATE = 3000, 3000.0
DEADLINES_S = (0.02, 0.05, 0.2, 0.5)
CANCEL_SHARE = 0.2
"""Share of the clients that leave before their answer."""


@dataclass(slots=True, eq=False)
class _TimedImage:
    """An image, and the time at which its request expires; 0 once the client has left."""

    pixels: Pixels
    expires: float


@dataclass(slots=True)
class CountingRunner:
    """A runner that counts the images of each forward, and those that had expired at its start."""

    runner: TorchRunner
    ran: int = 0
    late: int = 0

    @property
    def card(self) -> ModelCard:
        """The card of the wrapped runner."""
        return self.runner.card

    @property
    def max_batch(self) -> int:
        """The maximum batch size of the wrapped runner."""
        return self.runner.max_batch

    def check(self, plan: Plan) -> None:
        """Check the plan with the wrapped runner."""
        self.runner.check(plan)

    def stack(self, media: Sequence[_TimedImage], plan: Plan) -> Any:
        """The stacked pixels and the images."""
        return self.runner.stack([image.pixels for image in media], plan), media

    def run(self, batch: Any, plan: Plan) -> Sequence[Result | Exception]:
        """Count the images and run the wrapped runner."""
        pixels, media = batch
        now = time.monotonic()
        self.ran += len(media)
        self.late += sum(image.expires <= now for image in media)
        return self.runner.run(pixels, plan)


def count(seed: int = 0) -> dict[str, float]:
    """Counts of an overload with many expired and cancelled requests, through the real engine and model."""
    device = DeviceExecutor()
    try:
        runner = CountingRunner(device.call(partial(ImageModelLoader().load, MODEL)))
        answered = asyncio.run(_overload(runner, device, seed))
    finally:
        device.close()
    return {
        "late_forwards": runner.late,
        "late_offered": REQUESTS,
        "late_ran": runner.ran,
        "late_answered": answered,
    }


async def _overload(runner: CountingRunner, device: DeviceExecutor, seed: int) -> int:
    """Send REQUESTS requests; the number of answers."""
    engine = Engine(runner, Metrics(), device=device)
    engine.start()
    draw = random.Random(seed)  # noqa: S311 - not a secret
    pixels = np.random.default_rng(seed).integers(0, 255, (224, 224, 3), np.uint8)
    tasks, started = [], time.monotonic()
    for number in range(REQUESTS):
        await asyncio.sleep(started + number / RATE - time.monotonic())
        tasks.append(asyncio.create_task(_send(engine, number, pixels, draw)))
    answered = await asyncio.gather(*tasks)
    await engine.close()
    return sum(answered)


async def _send(engine: Engine, number: int, pixels: Pixels, draw: random.Random) -> bool:
    """Submit one request; whether it was answered."""
    deadline_s = draw.choice(DEADLINES_S)
    cancel_s = deadline_s * draw.random() if draw.random() < CANCEL_SHARE else None
    image = _TimedImage(pixels, time.monotonic() + deadline_s)
    request = Request(str(number), MODEL, image, pixels.nbytes, objective=Objective(image.expires))
    try:
        async with asyncio.timeout(cancel_s):
            await engine.submit(request)
    except TimeoutError:
        image.expires = 0.0
        return False
    except FoveateError:
        return False
    return True
