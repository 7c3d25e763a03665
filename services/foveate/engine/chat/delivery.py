"""Turns the results of steps into the events of calls."""

import logging

from foveate.core.chat import ChatEnded, ChatStarted, ChatToken
from foveate.core.errors import FoveateError, RunFailed
from foveate.engine.chat.entry import ChatEntry
from foveate.engine.chat.meter import ChatMeter
from foveate.engine.chat.runner import ChatModel, TokenPiece
from foveate.engine.chat.scheduler import ChatScheduler
from foveate.engine.chat.steps import ChatStep, StepResult

log = logging.getLogger(__name__)


class ChatDelivery:
    """Gives features and tokens to the calls of one model, and ends those that are complete or failed."""

    def __init__(self, model: ChatModel, scheduler: ChatScheduler, meter: ChatMeter) -> None:
        self._model, self._scheduler, self._meter = model, scheduler, meter

    def finish(self, step: ChatStep, result: StepResult) -> None:
        """Learn from the time of a step, and pass on what it gave. A failure ends these calls alone."""
        if step.stage is None or not result.entries:
            return
        try:
            ratio = None
            if not result.failed and len(result.entries) == len(step.entries) and result.seconds > 0:
                ratio = self._scheduler.latency.observe(step.stage, step.plan, step.size, result.seconds)
            self._meter.step(step.stage, len(result.entries), ratio)
            if step.stage == "encode":
                self.encoded(step, result)
            else:
                self.answered(step, result)
        except Exception:
            log.exception("passing on a step of %d failed", step.size)
            for entry in result.entries:
                entry.fail(RunFailed("the server failed on this request"))

    def encoded(self, step: ChatStep, result: StepResult) -> None:
        """Give calls the features of their pictures, or end those whose pictures failed."""
        for entry in step.entries:
            for key in entry.feature_keys:
                features = result.features.get(key)
                if isinstance(features, Exception):
                    self._fail(entry, features)
                elif features is not None:
                    entry.features[key] = features

    def answered(self, step: ChatStep, result: StepResult) -> None:
        """Pass the tokens of a prefill or of a decoding step on."""
        now = result.at
        counts = dict(zip(step.entries, step.counts, strict=False))
        for entry, piece in zip(result.entries, result.pieces, strict=True):
            if isinstance(piece, Exception):
                self._fail(entry, piece)
            elif piece is None:
                entry.left_tokens -= counts[entry]
            elif step.stage == "prefill":
                self._started(entry, piece, result, now)
            elif not entry.over:
                self._meter.next_token(entry, now)
                self._token(entry, piece, now)

    def _started(self, entry: ChatEntry, piece: TokenPiece, result: StepResult, now: float) -> None:
        """The first token of an answer: keep what was computed for the next calls, and pass it on."""
        entry.left_tokens = 0
        self._scheduler.promote(entry)
        if piece.choice is not None:
            self._scheduler.keep(entry, result.prefixes.get(entry))
        if entry.over or piece.choice is None:
            self._token(entry, piece, now)
            return
        self._meter.first_token(entry, now)
        pictures, visual = len(entry.call.pictures), self._model.visual_count(entry.plan)
        entry.emit(
            ChatStarted(
                entry.plan,
                self._model.card.quality_of(entry.plan),
                entry.reason,
                len(entry.ids) - pictures,
                pictures * visual,
                entry.cached.tokens,
                entry.active.max_tokens,
                entry.queue_s,
                now - entry.admitted_at,
            )
        )
        self._token(entry, piece, now)

    def _token(self, entry: ChatEntry, piece: TokenPiece, now: float) -> None:
        """Pass a token on, and the end of the answer if it is the last one."""
        if piece.finish == "error" or piece.choice is None:
            error = entry.sequence.error if entry.sequence else None
            self._fail(entry, error or RunFailed("the model failed on this request"))
            return
        entry.generated += 1
        entry.last_token_at = now
        if entry.over:
            return
        entry.emit(ChatToken(piece.text, *self._model.logprobs(piece.choice)))
        if piece.finish is not None:
            pictures = len(entry.call.pictures)
            text_tokens = len(entry.ids) - pictures
            cost = self._model.cost(entry.plan, text_tokens, pictures, entry.generated, entry.cached)
            total_s = now - entry.admitted_at
            ended = ChatEnded(piece.finish, entry.generated, cost.total, total_s)
            entry.end(ended, "stop" if piece.finish == "stop" else "length")

    def _fail(self, entry: ChatEntry, cause: Exception) -> None:
        """End a call with the error of its own step."""
        if isinstance(cause, FoveateError):
            entry.fail(cause)
            return
        failure = RunFailed("the model failed on this request")
        failure.__cause__ = cause
        entry.fail(failure)
