"""From a bound batch to an outcome for each of its requests."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

from foveate.core.errors import FoveateError, RunFailed
from foveate.core.metrics import Metrics
from foveate.core.outcome import Explanation, Outcome, Result, Timings
from foveate.core.plan import Plan
from foveate.engine.batch import Batch, forward
from foveate.engine.device import DeviceExecutor
from foveate.engine.queue import QueueEntry
from foveate.engine.runner import HasExplanations, Runner
from foveate.estimation.threads import ThreadSelector
from foveate.scheduling.policy import BatchDecision

log = logging.getLogger(__name__)


class BatchExecutor:
    """Runs batches of one model on the device, and gives every entry its answer or its failure."""

    def __init__(
        self,
        runner: Runner,
        latency: ThreadSelector,
        compute: DeviceExecutor,
        metrics: Metrics,
        clock: Callable[[], float],
    ) -> None:
        self.runner, self.latency, self.compute, self.clock = runner, latency, compute, clock
        self._stage = ThreadPoolExecutor(1, "stage")
        # Looking labels up costs more than counting.
        name = runner.card.name
        self._queue_wait = metrics.queue_wait.labels(name)
        self._stack_time = metrics.stage.labels(name, "stack")
        self._compute_time = metrics.stage.labels(name, "compute")
        self._batch_size, self._padding = metrics.batch_size.labels(name), metrics.padding.labels(name)
        self._prediction = metrics.prediction.labels(name)
        self._running_gauge = metrics.running.labels(name)

    async def stage(self, batch: Batch) -> None:
        """Stack the next batch while one runs. A failure here is met again, and settled, in `run`."""
        started = self.clock()
        media = [entry.request.media for entry in batch.decision.entries]
        work = asyncio.get_running_loop().run_in_executor(
            self._stage, self.runner.stack, media, batch.decision.plan
        )
        try:
            batch.stacked = await work
        except Exception:
            log.debug("staging ahead failed", exc_info=True)
        self._stack_time.observe(self.clock() - started)

    async def run(self, batch: Batch) -> None:
        """Run those who still wait. Whatever happens ends these requests, and nothing else."""
        try:
            await self._forward(batch)
        except Exception:
            log.exception("a batch of %d failed", len(batch.decision.entries))
            for entry in batch.decision.entries:
                if entry.alive:
                    entry.future.set_exception(RunFailed("the model failed on this request"))

    async def _forward(self, batch: Batch) -> None:
        started = self.clock()
        self._running_gauge.set(len(batch.decision.entries))
        try:
            entries, results = await self.compute.run(partial(forward, self.runner, batch, self.clock))
        finally:
            self._running_gauge.set(0)
        if not entries:
            return
        if not any(isinstance(result, Exception) for result in results):
            taken = self.clock() - started
            ratio = self.latency.observe(batch.decision.plan, len(entries), taken, batch.threads)
            self._prediction.observe(ratio)
        curious = self._settle(entries, results, batch.decision, started)
        if curious:
            await self._explain(curious, batch.decision.plan)

    def _settle(
        self,
        entries: Sequence[QueueEntry],
        results: Sequence[Result | Exception],
        decision: BatchDecision[QueueEntry],
        started: float,
    ) -> Sequence[tuple[QueueEntry, Outcome]]:
        """Hand every entry that still waits its answer or its failure.

        Returns the answers of those who asked for an explanation too, and get both together.
        """
        batch_s, plan = self.clock() - started, decision.plan
        self._compute_time.observe(batch_s)
        self._batch_size.observe(len(entries))
        self._padding.observe(padding_ratio(results))
        curious = []
        for entry, result in zip(entries, results, strict=True):
            waited = started - entry.admitted_at
            self._queue_wait.observe(waited)
            if not entry.alive:
                continue
            if isinstance(result, FoveateError):
                entry.future.set_exception(result)
            elif isinstance(result, Exception):
                failure = RunFailed("the model failed on this request")
                failure.__cause__ = result
                entry.future.set_exception(failure)
            else:
                if result.features is not None and not entry.request.features:
                    result = replace(result, features=None)  # a third of a megabyte that nobody wants
                reason = "pinned" if entry.pinned else decision.reason
                outcome = Outcome(result, plan, Timings(waited, batch_s), len(entries), reason)
                if entry.request.explain:
                    curious.append((entry, outcome))
                else:
                    entry.future.set_result(outcome)
        return curious

    async def _explain(self, curious: Sequence[tuple[QueueEntry, Outcome]], plan: Plan) -> None:
        """One more forward for those who asked, once the others of their batch have been answered."""
        explanations: Sequence[Explanation | None] = [None] * len(curious)
        if isinstance(self.runner, HasExplanations):
            media = [entry.request.media for entry, _ in curious]
            try:
                found = await self.compute.run(partial(self.runner.explain, media, plan))
                if len(found) != len(curious):
                    raise RunFailed(f"the model explained {len(found)} of {len(curious)} answers")
                explanations = found
            except Exception:  # the answer is there, and does not fail with its explanation
                log.warning("explaining %d answers failed", len(curious), exc_info=True)
        for (entry, outcome), explanation in zip(curious, explanations, strict=True):
            if entry.alive:
                result = replace(outcome.result, explanation=explanation)
                entry.future.set_result(replace(outcome, result=result))

    def close(self) -> None:
        self._stage.shutdown(wait=False, cancel_futures=True)


def padding_ratio(results: Sequence[Result | Exception]) -> float:
    """Share of the tokens of a batch, as its pictures left the trunk together, that are there because another
    picture has more."""
    left: dict[int, list[int]] = {}
    for result in results:
        if isinstance(result, Result):
            left.setdefault(result.exit_layer, []).append(result.tokens)
    room = sum(max(tokens) * len(tokens) for tokens in left.values())
    return 1 - sum(map(sum, left.values())) / room if room else 0.0
