"""A simulated device for chats: stages take the seconds of the profile, scaled and with noise."""

from collections.abc import Mapping, Sequence
from functools import lru_cache

from foveate.core.errors import SetupError
from foveate.core.model import Rung
from foveate.core.plan import Plan
from foveate.estimation.chat_latency import QUESTION_TOKENS, ChatStage
from loadtests.simulate.machine import Disturbance, Noise, seconds_of

Points = Mapping[int, float]
"""Measured seconds by size."""


class StageTimes:
    """Seconds of the stages of each plan: by pictures, by tokens of prompts, and by answers."""

    def __init__(self, rungs: Sequence[Rung]) -> None:
        """Raises SetupError for a rung without times."""
        self._points: dict[tuple[Plan, ChatStage], Points] = {}
        for rung in rungs:
            chat = rung.chat
            if chat is None or not (chat.encode_s and chat.prefill_s and chat.decode_s):
                raise SetupError(
                    f"the profile has no times of chats for {rung.plan}; profile the model again"
                )
            tokens = rung.tokens + QUESTION_TOKENS
            prefill_s = {count * tokens: seconds for count, seconds in chat.prefill_s.items()}
            self._points |= {
                (rung.plan, "encode"): chat.encode_s,
                (rung.plan, "prefill"): prefill_s,
                (rung.plan, "decode"): chat.decode_s,
            }
        self.seconds = lru_cache(maxsize=None)(self._seconds)

    def _seconds(self, plan: Plan, stage: ChatStage, size: int) -> float:
        """Seconds of a stage, without noise."""
        return seconds_of(self._points[plan, stage], size) if size else 0.0

    def best_s(self, plan: Plan, stage: ChatStage, largest: int) -> float:
        """The fewest seconds of one picture, token or answer, in any step of at most `largest` of them."""
        # Between two measured sizes the seconds are linear, so that the share of one is least at an end.
        sizes = {n for n in self._points[plan, stage] if n <= largest} | {1, largest}
        return min(self.seconds(plan, stage, n) / n for n in sizes)


class ChatMachine:
    """One simulated device."""

    def __init__(self, times: StageTimes, disturbance: Disturbance, seed: int) -> None:
        self._times, self._noise = times, Noise(disturbance, seed)

    def run(self, plan: Plan, stage: ChatStage, size: int) -> float:
        """Seconds that this step takes; draws the noise."""
        return self._noise.disturbed(self._times.seconds(plan, stage, size))
