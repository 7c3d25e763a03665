"""Counts the answers of one model in the metrics."""

from foveate.core.chat import ChatStarted
from foveate.core.metrics import Metrics
from foveate.core.model import ModelCard, Task
from foveate.core.outcome import Outcome, Reason
from foveate.core.plan import Plan


class Meter:
    """The metrics of one model's answers, with their labels resolved once."""

    def __init__(self, metrics: Metrics, card: ModelCard, task: Task | None = None) -> None:
        """task: what the requests ask for; None: the task of the model."""
        self.card, self._rung = card, metrics.rung
        self.decode = metrics.stage.labels(card.name, "decode")
        """The histogram of decode seconds."""
        self._duration = metrics.duration.labels(card.name, task or card.task)
        self._quality, self._degraded = metrics.quality.labels(card.name), metrics.degraded
        self._kept_tokens = metrics.kept_tokens.labels(card.name)
        self._exit_layer = metrics.exit_layer.labels(card.name)
        self._slo_met = metrics.slo.labels(card.name, "true")
        self._slo_missed = metrics.slo.labels(card.name, "false")

    def record_cached(self, quality: float | None, total_s: float, slo_met: bool | None) -> None:
        """Count an answer from the cache, for which no model ran.

        quality: None where it was never measured. slo_met: None without a deadline.
        """
        self._duration.observe(total_s)
        if quality is not None:
            self._quality.observe(quality)
        self._count_slo(slo_met)

    def record(self, outcome: Outcome, total_s: float, slo_met: bool | None) -> None:
        """Count one computed answer."""
        self._record_plan(outcome.plan, outcome.reason, total_s, slo_met)
        self._kept_tokens.observe(outcome.result.tokens / self.card.ladder[-1].tokens)
        self._exit_layer.observe(outcome.result.exit_layer)

    def record_chat(self, started: ChatStarted, pictures: int, total_s: float, slo_met: bool | None) -> None:
        """Count one answer of a chat with so many pictures."""
        self._record_plan(started.plan, started.reason, total_s, slo_met)
        if pictures:
            self._kept_tokens.observe(started.visual_tokens / pictures / self.card.ladder[-1].tokens)

    def _record_plan(self, plan: Plan, reason: Reason, total_s: float, slo_met: bool | None) -> None:
        """Plans outside the ladder share one label, so that labels stay few."""
        rung = plan.relative_to(self.card.full) if self.card.rung(plan) else "other"
        self._rung.labels(self.card.name, rung).inc()
        self._duration.observe(total_s)
        quality = self.card.quality_of(plan)
        if quality is not None:
            self._quality.observe(quality)
        if plan != self.card.full:
            self._degraded.labels(self.card.name, reason).inc()
        self._count_slo(slo_met)

    def _count_slo(self, slo_met: bool | None) -> None:
        if slo_met is not None:
            (self._slo_met if slo_met else self._slo_missed).inc()
