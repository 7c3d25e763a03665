"""The base of the runners of classifiers: which rung answers an image may depend on its content."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foveate.core.batching import BATCH_SIZES
from foveate.core.content import ContentRungs
from foveate.core.errors import RunFailed
from foveate.core.model import ModelCard
from foveate.core.outcome import Result
from foveate.core.plan import Plan
from foveate.models.runners.base import BaseRunner
from foveate.models.runners.image_plans import parse_certainty


class ClassifierRunner(BaseRunner):
    """Runs a batch under one plan, or each image of it on the rung that the image's content needs."""

    card: ModelCard
    content: ContentRungs | None = None
    """The choice by content; None where no profile has one."""

    @property
    def content_plans(self) -> tuple[Plan, ...]:
        """The rungs that the choice by content chooses from, the cheapest first; empty without a choice."""
        return tuple(Plan.parse(text, self.full) for text in (self.content.rungs if self.content else ()))

    @abstractmethod
    def check(self, plan: Plan) -> None:
        """Raise BadPlan when this model cannot run the plan."""

    def run(self, batch: Tensor, plan: Plan) -> Sequence[Result | Exception]:
        """One result per image of a batch (B, S, S, 3) uint8.

        An image whose scores are not finite fails alone.
        """
        if plan.content is not None and self.content is not None:
            return self.run_by_content(batch, self.content, parse_certainty(plan))
        if len(batch) > self.batch_limit(plan):
            return self._run_in_batches(batch, plan)
        return self.run_plan(batch, plan)

    def batch_limit(self, plan: Plan) -> int:
        """Most images of one forward of a plan."""
        return self.max_batch

    @abstractmethod
    def run_plan(self, batch: Tensor, plan: Plan) -> Sequence[Result | Exception]:
        """One result per image of a batch (B, S, S, 3) uint8, all under a plan without content rungs."""

    def run_by_content(
        self, batch: Tensor, content: ContentRungs, certainty: float
    ) -> Sequence[Result | Exception]:
        """The cheapest rung runs on all images. Those for which it may not suffice run again on another rung.

        certainty: the required probability that a rung suffices, in 0..1.
        """
        cheapest, *others = (Plan.parse(text, self.full) for text in content.rungs)
        firsts = self._run_in_batches(batch, cheapest)
        failed = np.zeros(len(self.card.labels), np.float32)  # zeros: no rung is known to suffice
        scores = np.stack([failed if isinstance(r, Exception) else r.scores for r in firsts])
        choice = content.choose(scores, certainty)
        results = [_with_rung(result, cheapest) for result in firsts]
        for number, rung in enumerate(others, 1):
            rows = np.flatnonzero(choice == number)
            if len(rows):
                again = self._run_in_batches(batch[torch.from_numpy(rows)], rung)
                for row, result in zip(rows.tolist(), again, strict=True):
                    results[row] = _with_rung(result, rung, firsts[row])
        return results

    def _run_in_batches(self, batch: Tensor, plan: Plan) -> list[Result | Exception]:
        """Any number of images, in batches that fit into memory and of sizes whose kernels are prepared."""
        results: list[Result | Exception] = []
        while len(results) < len(batch):
            left = min(self.batch_limit(plan), len(batch) - len(results))
            size = max(size for size in BATCH_SIZES if size <= left)
            results += self.run_plan(batch[len(results) : len(results) + size], plan)
        return results


def classified(scores: NDArray[np.float32], tokens: int, layer: int, gflops: float) -> Result | Exception:
    """The result of one image with these scores (C,); RunFailed where they are not finite."""
    if not np.isfinite(scores).all():
        return RunFailed("the model's scores for this image are not finite")
    return Result(scores, tokens, layer, gflops)


def _with_rung(
    result: Result | Exception, rung: Plan, first: Result | Exception | None = None
) -> Result | Exception:
    """The result with the rung that was chosen for it, and with the cost of the cheapest rung's run added.

    first: the result of the cheapest rung, where the chosen rung is another.
    """
    if isinstance(result, Exception):
        return result
    spent = first.gflops if isinstance(first, Result) else 0.0
    return replace(result, chosen=rung, gflops=result.gflops + spent)
