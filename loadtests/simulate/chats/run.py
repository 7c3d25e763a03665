"""Simulates chats on one server: `World` and `simulate` for chats."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter

from foveate.core.model import ModelCard, Rung
from loadtests.simulate.chats.baselines import ChatBaseline
from loadtests.simulate.chats.engine import ChatLimits, SimulatedChatEngine
from loadtests.simulate.chats.machine import ChatMachine, StageTimes
from loadtests.simulate.chats.record import ChatSimulationRecord
from loadtests.simulate.chats.workload import ChatWorkload
from loadtests.simulate.machine import Disturbance

SIMULATED = (
    "policy, admission, queue, scheduler, slots, both caches, latency model and estimated lengths of answers "
    "are the server's own code on a virtual clock"
)
NOT_SIMULATED = (
    "HTTP, reading texts and decoding pictures, other models on the device, disconnects, and what answers "
    "say: quality is that of the profile, and right answers are not counted"
)
"""What a simulation of chats has, and what it leaves out."""


@dataclass(frozen=True, slots=True)
class ChatWorld:
    """The simulated server: one vision-language model on one device."""

    rungs: tuple[Rung, ...]
    """The rungs that a policy may choose, cheapest first, the last is full; all with times of chats."""
    limits: ChatLimits = field(default_factory=ChatLimits)
    disturbance: Disturbance = field(default_factory=Disturbance)

    @property
    def times(self) -> StageTimes:
        """Seconds of stages. Raises SetupError for a rung without times."""
        return StageTimes(self.rungs)

    def full_rate(self, workload: ChatWorkload) -> float:
        """Chats per second that the device can serve at full, with all slots taken and nothing cached."""
        times, full, slots = self.times, self.rungs[-1], self.limits.slots
        step_s = times.seconds(full.plan, "decode", slots) / slots
        encode_s = times.best_s(full.plan, "encode", self.limits.max_batch)
        total_s = 0.0
        for chat in workload.chats:
            prefill_s = times.seconds(full.plan, "prefill", full.tokens + chat.text_tokens)
            total_s += encode_s + prefill_s + (chat.tokens - 1) * step_s
        return len(workload) / (total_s * self.disturbance.slowdown)


def simulate_chats(
    world: ChatWorld, baseline: ChatBaseline, workload: ChatWorkload, seed: int
) -> ChatSimulationRecord:
    """Serve a workload. The same arguments give the same record."""
    started, record = perf_counter(), ChatSimulationRecord(workload)
    rungs = baseline.rungs_of(world.rungs)
    machine = ChatMachine(world.times, world.disturbance, seed)
    SimulatedChatEngine(
        card_of(rungs), baseline.policy, machine, workload, record, world.limits, world.disturbance.gap_s
    ).run()
    record.wall_s = perf_counter() - started
    return record


def card_of(rungs: Sequence[Rung]) -> ModelCard:
    """The card of a model with these rungs; the last one is its full plan."""
    full = rungs[-1].plan
    return ModelCard(full.variant, "", full, (), 0, None, tuple(rungs), task="chat")
