"""Forwards that were spent on requests which had expired or been cancelled when they began."""

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
PROMISES_S = (0.02, 0.05, 0.2, 0.5)
LEAVING = 0.2
"""Share of those who leave before they are answered."""


@dataclass(slots=True, eq=False)
class _Media:
    """A picture, and until when somebody waits for what it shows."""

    pixels: Pixels
    until: float


@dataclass(slots=True)
class Watched:
    """A runner that looks, as a forward begins, whether anybody still waits for each picture in it."""

    runner: TorchRunner
    ran: int = 0
    late: int = 0

    @property
    def card(self) -> ModelCard:
        return self.runner.card

    @property
    def max_batch(self) -> int:
        return self.runner.max_batch

    def check(self, plan: Plan) -> None:
        self.runner.check(plan)

    def stack(self, media: Sequence[_Media], plan: Plan) -> Any:
        return self.runner.stack([one.pixels for one in media], plan), media

    def run(self, batch: Any, plan: Plan) -> Sequence[Result | Exception]:
        pixels, media = batch
        now = time.monotonic()
        self.ran += len(media)
        self.late += sum(one.until <= now for one in media)
        return self.runner.run(pixels, plan)


def count(seed: int = 0) -> dict[str, float]:
    """Counts of an overload in which many expire and many leave, through the real engine and model."""
    compute = DeviceExecutor()
    try:
        watched = Watched(compute.call(partial(ImageModelLoader().load, MODEL)))
        answered = asyncio.run(_overload(watched, compute, seed))
    finally:
        compute.close()
    return {
        "late_forwards": watched.late,
        "late_offered": REQUESTS,
        "late_ran": watched.ran,
        "late_answered": answered,
    }


async def _overload(runner: Watched, compute: DeviceExecutor, seed: int) -> int:
    engine = Engine(runner, Metrics(), device=compute)
    engine.start()
    draw = random.Random(seed)  # noqa: S311 - dice, not secrets
    picture = np.random.default_rng(seed).integers(0, 255, (224, 224, 3), np.uint8)
    tasks, started = [], time.monotonic()
    for number in range(REQUESTS):
        await asyncio.sleep(started + number / RATE - time.monotonic())
        tasks.append(asyncio.create_task(_one(engine, number, picture, draw)))
    ended = await asyncio.gather(*tasks)
    await engine.close()
    return sum(ended)


async def _one(engine: Engine, number: int, picture: Pixels, draw: random.Random) -> bool:
    """Whether it was answered."""
    promise_s = draw.choice(PROMISES_S)
    stays_s = promise_s * draw.random() if draw.random() < LEAVING else None
    media = _Media(picture, time.monotonic() + promise_s)
    request = Request(str(number), MODEL, media, picture.nbytes, objective=Objective(media.until))
    try:
        async with asyncio.timeout(stays_s):
            await engine.submit(request)
    except TimeoutError:
        media.until = 0.0
        return False
    except FoveateError:
        return False
    return True
