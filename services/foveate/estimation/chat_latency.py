"""Predicts the seconds of the steps of a vision-language model: encoding, prefill, and decoding."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from foveate.core.model import Rung
from foveate.core.plan import Plan
from foveate.estimation.latency import LatencyModel

ChatStage = Literal["encode", "prefill", "decode"]
DEFAULT_S: Mapping[ChatStage, Mapping[int, float]] = {
    "encode": {1: 0.02, 8: 0.12},
    "prefill": {16: 0.01, 1024: 0.2},
    "decode": {1: 0.01, 8: 0.02},
}
"""Stand in for the times of full where they were never measured, by pictures, tokens and answers."""
QUESTION_TOKENS = 16
"""Tokens of the text of a question by which prefills were measured, about."""
TOKEN_STEP = 16
"""Prefills are counted in multiples of this many tokens."""


class ChatLatencyModel:
    """Seconds of a step: encoding by pictures, a prefill by its new tokens, decoding by answers.

    Each stage has a `LatencyModel` of its own, seeded from the profile and refitted by every step that runs.
    """

    def __init__(self, ladder: Sequence[Rung]) -> None:
        """ladder: cheapest first, the last is full."""
        self._stages: dict[ChatStage, LatencyModel] = {
            stage: LatencyModel([_stage_rung(rung, stage) for rung in ladder], default_s=default_s)
            for stage, default_s in DEFAULT_S.items()
        }

    @property
    def safety_factor(self) -> float:
        """Factor by which a prediction is multiplied so that a step seldom takes longer."""
        return max(stage.safety_factor for stage in self._stages.values())

    def predict(self, stage: ChatStage, plan: Plan, size: int) -> float:
        """Seconds of a step. size: pictures, new tokens of prompts, or answers; none of them take no time."""
        return self._stages[stage].predict(plan, _counted(stage, size)) if size else 0.0

    def observe(self, stage: ChatStage, plan: Plan, size: int, seconds: float) -> float:
        """Learn from a step that has run. Returns its seconds over the predicted seconds."""
        return self._stages[stage].observe(plan, _counted(stage, size), seconds)

    def decay(self) -> None:
        """Move towards the profile: what is known about the machine may be out of date."""
        for stage in self._stages.values():
            stage.decay()

    def start_s(self, plan: Plan, pictures: int, tokens: int) -> float:
        """Seconds of encoding pictures and of the prefill of new tokens, without other calls."""
        return self.predict("encode", plan, pictures) + self.predict("prefill", plan, tokens)

    def step_s(self, plan: Plan, answers: int) -> float:
        """Seconds of one token more for each of so many answers."""
        return self.predict("decode", plan, max(1, answers))


def _counted(stage: ChatStage, size: int) -> int:
    """The size by which a step is kept: few different ones of prefills."""
    return -(-size // TOKEN_STEP) * TOKEN_STEP if stage == "prefill" else size


def _stage_rung(rung: Rung, stage: ChatStage) -> Rung:
    """A rung with the cost and the measured seconds of one stage."""
    chat = rung.chat
    if chat is None:
        return replace(rung, latency_s=None)
    if stage == "encode":
        return replace(rung, gflops=chat.encode_gflops, latency_s=chat.encode_s or None)
    if stage == "decode":
        return replace(rung, gflops=chat.decode_gflops, latency_s=chat.decode_s or None)
    tokens = rung.tokens + QUESTION_TOKENS
    prefill_s = {_counted(stage, count * tokens): seconds for count, seconds in chat.prefill_s.items()}
    return replace(rung, gflops=chat.prefill_gflops, latency_s=prefill_s or None)
