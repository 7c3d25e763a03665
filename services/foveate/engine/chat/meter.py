"""Counts the chats of one model in the metrics."""

from foveate.core.metrics import Metrics
from foveate.engine.chat.entry import ChatEnd, ChatEntry
from foveate.engine.chat.runner import ChatModel
from foveate.engine.chat.scheduler import ChatScheduler, prompt_tokens
from foveate.estimation.chat_latency import ChatStage


class ChatMeter:
    """The metrics of one model's chats, with their labels resolved once."""

    def __init__(self, metrics: Metrics, model: ChatModel, scheduler: ChatScheduler) -> None:
        name = model.card.name
        self._model, self._name = model, name
        self._first_token = metrics.first_token.labels(name)
        self._token_time = metrics.token_time.labels(name)
        self._visual, self._answer = metrics.visual_tokens.labels(name), metrics.answer_tokens.labels(name)
        self._queue_wait, self._chats = metrics.queue_wait.labels(name), metrics.chats
        self._steps, self._prediction = metrics.chat_steps, metrics.prediction.labels(name)
        self._batch_size = metrics.batch_size.labels(name)
        self._computed = metrics.prompt_tokens.labels(name, "computed")
        self._cached = metrics.prompt_tokens.labels(name, "cached")
        metrics.slots.labels(name).set(model.slots)
        metrics.kv_bytes.labels(name).set(model.kv_bytes)
        metrics.used_slots.labels(name).set_function(lambda: model.slots - model.free_slots)
        metrics.used_kv_bytes.labels(name).set_function(lambda: model.used_kv_bytes)
        metrics.waiting.labels(name).set_function(lambda: len(scheduler.queue))
        metrics.waiting_bytes.labels(name).set_function(lambda: scheduler.queue.bytes)
        metrics.running.labels(name).set_function(lambda: len(scheduler.running) + len(scheduler.staged))

    def step(self, stage: ChatStage, size: int, ratio: float | None) -> None:
        """Count a step. ratio: its seconds over the predicted ones, None if they say nothing."""
        self._steps.labels(self._name, stage).inc()
        if stage == "decode":
            self._batch_size.observe(size)
        if ratio is not None:
            self._prediction.observe(ratio)

    def first_token(self, entry: ChatEntry, now: float) -> None:
        """Count the first token of an answer."""
        self._queue_wait.observe(entry.queue_s)
        self._first_token.observe(now - entry.admitted_at)
        for _ in entry.call.pictures:
            self._visual.observe(self._model.visual_count(entry.plan))
        self._cached.inc(entry.cached.tokens)
        self._computed.inc(prompt_tokens(self._model, entry, entry.plan) - entry.cached.tokens)

    def next_token(self, entry: ChatEntry, now: float) -> None:
        """Count a further token of an answer."""
        self._token_time.observe(now - entry.last_token_at)

    def end(self, end: ChatEnd, tokens: int = 0) -> None:
        """Count how a call has ended. tokens: of a complete answer."""
        self._chats.labels(self._name, end).inc()
        if tokens:
            self._answer.observe(tokens)
