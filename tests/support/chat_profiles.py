"""The profile of a vision-language model with three rungs, and its ladder, for tests of the simulator."""

from foveate.core.model import Rung
from foveate.core.profile import ChatMeasurement, Measurement, MeasurementEnvironment, Profile, ProfilingSet
from loadtests.simulate.machine import ladder

SETTING = MeasurementEnvironment("a processor", 2, "bf16", "2", "3.11", "0", "2026-11-01")


def chat_rung(plan: str, tokens: int, quality: float, prefill_s: float) -> Measurement:
    """A plan: its pictures take 20 ms each, and its prefill so many seconds."""
    chat = ChatMeasurement(
        {"name": quality}, "name", quality, 1.0, tokens / 100, 0.01, {1: 0.02, 8: 0.12},
        {1: prefill_s, 8: 6 * prefill_s}, {1: 0.004, 8: 0.006, 16: 0.008},
    )  # fmt: skip
    latency_s = {1: 0.02 + prefill_s, 8: 0.12 + 6 * prefill_s}
    return Measurement(plan, quality, quality, 1 + tokens / 100, tokens, latency_s, True, chat)


PROFILE = Profile(
    "tiny-chat",
    "0" * 64,
    ProfilingSet("questions", 8, labelled=True),
    0,
    SETTING,
    (
        chat_rung("pool:16", 16, 0.9, 0.004),
        chat_rung("guided:49", 49, 0.97, 0.01),
        chat_rung("full", 196, 1.0, 0.03),
    ),
)
RUNGS: tuple[Rung, ...] = ladder(PROFILE)
