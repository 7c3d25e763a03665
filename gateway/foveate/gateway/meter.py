"""Counts the answers of one model in the metrics."""

from foveate.core.metrics import Metrics
from foveate.core.model import ModelCard, Task
from foveate.core.outcome import Outcome


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
        """Count one computed answer. Plans outside the ladder share one label, so that labels stay few."""
        rung = outcome.plan.relative_to(self.card.full) if self.card.rung(outcome.plan) else "other"
        self._rung.labels(self.card.name, rung).inc()
        self._duration.observe(total_s)
        self._kept_tokens.observe(outcome.result.tokens / self.card.ladder[-1].tokens)
        self._exit_layer.observe(outcome.result.exit_layer)
        quality = self.card.quality_of(outcome.plan)
        if quality is not None:
            self._quality.observe(quality)
        if outcome.plan != self.card.full:
            self._degraded.labels(self.card.name, outcome.reason).inc()
        self._count_slo(slo_met)

    def _count_slo(self, slo_met: bool | None) -> None:
        if slo_met is not None:
            (self._slo_met if slo_met else self._slo_missed).inc()
