"""The policy of a plain batching server: first come, first served, one plan for all, nobody refused."""

from collections.abc import Sequence
from itertools import islice

from foveate.core.model import Rung
from foveate.engine.latency import Predictor
from foveate.engine.others import NOBODY, Others
from foveate.engine.policy import Decision, Flow, Refusal, W


class Welcoming:
    """Lets everybody in."""

    def admit(
        self,
        entry: W,
        waiting: Sequence[W],
        now: float,
        free_at: float,
        ready_at: float = 0.0,
        others: Others = NOBODY,
    ) -> Refusal[W] | None:
        return None


class Fifo(Welcoming):
    """What there is to compare with. Floors and deadlines are not looked at; a pinned plan is."""

    def __init__(self, rungs: Sequence[Rung], latency: Predictor, max_batch: int) -> None:
        self.plan, self.max_batch = rungs[-1].plan, max_batch

    def choose(self, waiting: Sequence[W], now: float, free_at: float, flow: Flow) -> Decision[W] | None:
        """The first, filled up with those behind it that run under the same plan."""
        if not waiting:
            return None
        plan = waiting[0].pinned or self.plan
        chosen = tuple(islice((e for e in waiting if (e.pinned or self.plan) == plan), self.max_batch))
        return Decision(chosen, plan, len(chosen) == self.max_batch, "pinned")
