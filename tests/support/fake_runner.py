"""A runner without a model. Tests can block its forwards, make them fail, and read what it ran."""

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from foveate.core.errors import BadPlan
from foveate.core.model import InputSpec, ModelCard, Rung
from foveate.core.outcome import Result
from foveate.core.plan import Plan

FULL = Plan("fake", 32)
HALF = Plan("fake", 32, reducer="evit:0.5")
RUNGS = (Rung(HALF, 0.5, 5, 0.9, {1: 1e-4, 8: 2e-4}), Rung(FULL, 1.0, 10, 1.0, {1: 2e-4, 8: 4e-4}))


class FakeRunner:
    """Returns class 0 for every item. A batch with the media "poison" fails."""

    def __init__(self, name: str = "fake", max_batch: int = 4, spec: InputSpec | None = None) -> None:
        self.card = ModelCard(name, "a fake", FULL, ("yes", "no"), 0, spec, RUNGS)
        self.max_batch = max_batch
        self.batches: list[list[Any]] = []
        """The media of every forward."""
        self.plans: list[Plan] = []
        """The plan of every forward."""
        self.gate = threading.Event()
        """Forwards wait until it is set."""
        self.gate.set()
        self.entered = threading.Semaphore(0)
        """Released at the start of every forward."""

    def check(self, plan: Plan) -> None:
        if plan not in (FULL, HALF):
            raise BadPlan(f"no {plan} here")

    def stack(self, media: Sequence[Any], plan: Plan) -> list[Any]:
        return list(media)

    def run(self, batch: list[Any], plan: Plan) -> list[Result | Exception]:
        self.entered.release()
        assert self.gate.wait(20)
        self.batches.append(batch)
        self.plans.append(plan)
        if any(isinstance(item, str) and item == "poison" for item in batch):
            raise ValueError("a poisoned batch")
        return [Result(np.array([0.75, 0.25], np.float32), 5, 12, 0.5) for _ in batch]
