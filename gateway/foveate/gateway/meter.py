"""What is counted of a model's answers."""

from foveate.core.metrics import Metrics
from foveate.core.model import ModelCard
from foveate.core.outcome import Outcome
from foveate.gateway.objective import quality_of


class Meter:
    """The metrics of one model's answers, label children resolved once."""

    def __init__(self, metrics: Metrics, card: ModelCard) -> None:
        self.card, self._rung = card, metrics.rung
        self.decode = metrics.stage.labels(card.name, "decode")
        self._duration = metrics.duration.labels(card.name, card.task)
        self._quality, self._degraded = metrics.quality.labels(card.name), metrics.degraded
        self._kept = metrics.kept_tokens.labels(card.name)
        self._exit = metrics.exit_layer.labels(card.name)
        self._met = metrics.slo.labels(card.name, "true")
        self._missed = metrics.slo.labels(card.name, "false")

    def repeated(self, quality: float | None, total_s: float, met: bool | None) -> None:
        """Count an answer that was there already: nothing ran for it. quality: None where nobody measured."""
        self._duration.observe(total_s)
        if quality is not None:
            self._quality.observe(quality)
        self._promised(met)

    def _promised(self, met: bool | None) -> None:
        if met is not None:
            (self._met if met else self._missed).inc()

    def answered(self, outcome: Outcome, total_s: float, met: bool | None) -> None:
        """Count one answer. Plans outside the ladder share one label, so that labels stay few."""
        rung = outcome.plan.relative_to(self.card.full) if self.card.rung(outcome.plan) else "other"
        self._rung.labels(self.card.name, rung).inc()
        self._duration.observe(total_s)
        self._kept.observe(outcome.result.tokens / self.card.ladder[-1].tokens)
        self._exit.observe(outcome.result.exit_layer)
        quality = quality_of(self.card, outcome.plan)
        if quality is not None:
            self._quality.observe(quality)
        if outcome.plan != self.card.full:
            self._degraded.labels(self.card.name, outcome.reason).inc()
        self._promised(met)
