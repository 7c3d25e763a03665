"""Runs a scheduled batch and gives each of its requests an outcome."""

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
from foveate.engine.batch import BatchResults, ScheduledBatch, run_batch
from foveate.engine.device import DeviceExecutor
from foveate.engine.hang import DeviceWork, WorkKind
from foveate.engine.queue import QueueEntry
from foveate.engine.result_check import InvalidResult, ResultCheck
from foveate.engine.runner import HasExplanations, Runner
from foveate.estimation.threads import ThreadSelector
from foveate.scheduling.policy import BatchDecision

log = logging.getLogger(__name__)


class BatchExecutor:
    """Runs the batches of one model on the device, and sets the outcome or the failure of every entry."""

    def __init__(
        self,
        runner: Runner,
        latency: ThreadSelector,
        device: DeviceExecutor,
        metrics: Metrics,
        clock: Callable[[], float],
    ) -> None:
        """latency: observes every batch; clock: the clock of the deadlines, in seconds."""
        self.runner, self.latency, self.device, self.clock = runner, latency, device, clock
        self._check = ResultCheck(runner.card)
        self._stage_thread = ThreadPoolExecutor(1, "stage")
        # The labels are resolved once: that costs more than counting.
        name = runner.card.name
        self._queue_wait = metrics.queue_wait.labels(name)
        self._stack_time = metrics.stage.labels(name, "stack")
        self._compute_time = metrics.stage.labels(name, "compute")
        self._batch_size, self._padding = metrics.batch_size.labels(name), metrics.padding.labels(name)
        self._prediction_ratio = metrics.prediction.labels(name)
        self._running_gauge = metrics.running.labels(name)
        self._hangs, self._invalid_results = metrics.hangs, metrics.invalid_results

    async def stage(self, batch: ScheduledBatch) -> None:
        """Stack a batch while another one runs. If that fails, `run` stacks again and handles the failure."""
        started = self.clock()
        entries, plan = batch.decision.entries, batch.decision.plan
        media = [entry.request.media for entry in entries]
        stacking = asyncio.get_running_loop().run_in_executor(
            self._stage_thread, self.runner.stack, media, plan
        )
        try:
            work = self._work("stacking", len(entries), plan, batch.predicted_s, partial(self._fail, entries))
            with self.device.hangs.watch(work):
                batch.stacked = await stacking
        except (Exception, SystemExit):
            log.debug("stacking a prefetched batch failed", exc_info=True)
        self._stack_time.observe(self.clock() - started)

    async def run(self, batch: ScheduledBatch) -> None:
        """Run the entries that are alive. A failure ends these requests and does not stop the engine."""
        try:
            await self._forward(batch)
        except (Exception, SystemExit):  # a library of the model may call sys.exit
            log.exception("a batch of %d failed", len(batch.decision.entries))
            for entry in batch.decision.entries:
                entry.fail(RunFailed("the model failed on this request"))

    async def _forward(self, batch: ScheduledBatch) -> None:
        """Run the forward, observe its latency, set the outcomes, and explain where asked."""
        started, decision = self.clock(), batch.decision
        # If the batch fails, its items run one after the other.
        one_by_one_s = len(decision.entries) * self.latency.predict(decision.plan, 1)
        predicted_s = max(batch.predicted_s, one_by_one_s)
        size, give_up = len(decision.entries), partial(self._fail, decision.entries)
        work = self._work("batch", size, decision.plan, predicted_s, give_up)
        self._running_gauge.set(size)
        try:
            with self.device.hangs.watch(work):
                entries, results = await self.device.run(partial(self._run_checked, batch))
        finally:
            self._running_gauge.set(0)
        if not entries:
            return
        self._report_invalid(results, decision.plan)
        if not any(isinstance(result, Exception) for result in results):
            seconds = self.clock() - started
            ratio = self.latency.observe(decision.plan, len(entries), seconds, batch.threads)
            self._prediction_ratio.observe(ratio)
        to_explain = self._settle(entries, results, decision, started)
        if to_explain:
            await self._explain(to_explain, decision.plan)

    def _work(
        self, kind: WorkKind, size: int, plan: Plan, predicted_s: float, give_up: Callable[[], None]
    ) -> DeviceWork:
        """A piece of work of this model. A hang is counted. give_up: called when the work is lost."""

        def on_change(work: DeviceWork) -> None:
            if work.state == "lost":
                give_up()
            else:
                self._hangs.labels(work.model, self._rung_name(plan)).inc()

        return DeviceWork(self.runner.card.name, plan, size, predicted_s, kind, on_change)

    def _fail(self, entries: Sequence[QueueEntry]) -> None:
        for entry in entries:
            entry.fail(RunFailed("the model did not finish this request; the server has given it up"))

    def _run_checked(self, batch: ScheduledBatch) -> BatchResults:
        """Run a batch on this thread, and check every result; an invalid one fails its own request."""
        entries, results = run_batch(self.runner, batch, self.clock)
        checked = [
            self._check(result, features=entry.request.features)
            for entry, result in zip(entries, results, strict=True)
        ]
        return entries, checked

    def _report_invalid(self, results: Sequence[Result | Exception], plan: Plan) -> None:
        """Count and log the results that the check has refused."""
        invalid = [result for result in results if isinstance(result, InvalidResult)]
        if invalid:
            self._invalid_results.labels(self.runner.card.name, self._rung_name(plan)).inc(len(invalid))
            log.error(
                "%d of %d results under %s are invalid: %s", len(invalid), len(results), plan, invalid[0]
            )

    def _rung_name(self, plan: Plan) -> str:
        """The plan as a metric label: the name of its rung, or other."""
        card = self.runner.card
        return "other" if card.rung(plan) is None else plan.relative_to(card.full)

    def _settle(
        self,
        entries: Sequence[QueueEntry],
        results: Sequence[Result | Exception],
        decision: BatchDecision[QueueEntry],
        started: float,
    ) -> Sequence[tuple[QueueEntry, Outcome]]:
        """Set the outcome or the failure of every entry that is alive.

        Returns the entries that asked for an explanation with their outcomes, which are not set yet.
        """
        batch_s, plan = self.clock() - started, decision.plan
        self._compute_time.observe(batch_s)
        self._batch_size.observe(len(entries))
        self._padding.observe(padding_ratio(results))
        to_explain = []
        for entry, result in zip(entries, results, strict=True):
            wait_s = started - entry.admitted_at
            self._queue_wait.observe(wait_s)
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
                    result = replace(result, features=None)  # a third of a megabyte that was not asked for
                reason = "pinned" if entry.pinned else decision.reason
                outcome = Outcome(result, plan, Timings(wait_s, batch_s), len(entries), reason)
                if entry.request.explain:
                    to_explain.append((entry, outcome))
                else:
                    entry.future.set_result(outcome)
        return to_explain

    async def _explain(self, to_explain: Sequence[tuple[QueueEntry, Outcome]], plan: Plan) -> None:
        """Run one more forward for explanations, and set the outcomes of these entries.

        The other entries of the batch have their outcomes already. Without an explanation, because it failed
        or the runner makes none, an outcome is still valid.
        """
        explanations: Sequence[Explanation | None] = [None] * len(to_explain)
        if isinstance(self.runner, HasExplanations):
            media = [entry.request.media for entry, _ in to_explain]
            try:
                predicted_s = self.latency.predict(plan, len(media))
                give_up = partial(self._finish, to_explain, explanations)
                work = self._work("explanation", len(to_explain), plan, predicted_s, give_up)
                with self.device.hangs.watch(work):
                    returned = await self.device.run(partial(self.runner.explain, media, plan))
                if len(returned) != len(to_explain):
                    raise RunFailed(
                        f"the model returned {len(returned)} explanations for {len(to_explain)} requests"
                    )
                explanations = [self._check.explain(explanation) for explanation in returned]
            except Exception:
                log.warning("explaining %d results failed", len(to_explain), exc_info=True)
        self._finish(to_explain, explanations)

    @staticmethod
    def _finish(
        to_explain: Sequence[tuple[QueueEntry, Outcome]], explanations: Sequence[Explanation | None]
    ) -> None:
        """Set the outcomes of these entries, with their explanations."""
        for (entry, outcome), explanation in zip(to_explain, explanations, strict=True):
            if entry.alive:
                result = replace(outcome.result, explanation=explanation)
                entry.future.set_result(replace(outcome, result=result))

    def close(self) -> None:
        """End the stacking thread after the batch that it stacks now."""
        self._stage_thread.shutdown(wait=False, cancel_futures=True)


def padding_ratio(results: Sequence[Result | Exception]) -> float:
    """Share of the final tokens of a batch that are padding.

    Items that exit after the same block are padded to the longest of them; failed items do not count.
    """
    tokens_by_exit: dict[int, list[int]] = {}
    for result in results:
        if isinstance(result, Result):
            tokens_by_exit.setdefault(result.exit_layer, []).append(result.tokens)
    padded = sum(max(tokens) * len(tokens) for tokens in tokens_by_exit.values())
    return 1 - sum(map(sum, tokens_by_exit.values())) / padded if padded else 0.0
