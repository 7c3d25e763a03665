"""The outcome of every chat of a simulation."""

import numpy as np

from loadtests.simulate.chats.workload import ChatWorkload
from loadtests.simulate.record import End, SimulationRecord
from loadtests.simulate.workload import SimulatedRequest


class ChatSimulationRecord(SimulationRecord):
    """Arrays over the N chats. A batch is a step of decoding."""

    def __init__(self, workload: ChatWorkload) -> None:
        super().__init__(workload)
        self.first_token_by_s = workload.first_token_s
        self.first_token_s = np.full(len(workload), np.nan)
        """(N,) seconds from arrival to the first token, for chats that got one."""
        self.cached_tokens = np.zeros(len(workload), np.int64)
        """(N,) tokens of the prompt that were cached, for chats that were answered."""

    def set_answer(self, request: SimulatedRequest, now: float, quality: float, cached_tokens: int) -> None:
        """Set the outcome of a chat whose answer is complete. Raises ValueError if it has one already."""
        self.cached_tokens[request.number] = cached_tokens
        if self.first_token_s[request.number] > self.first_token_by_s:
            self.latency_s[request.number] = now - request.at
            self.set_end(request, End.MISSED)
        else:
            self.set_answered(request, now, quality)

    def first_token_ms(self, percent: float) -> float:
        """A percentile of the time to the first token, of answered chats, in milliseconds; NaN for none."""
        known = self.first_token_s[~np.isnan(self.latency_s)]
        return float(1e3 * np.nanpercentile(known, percent)) if len(known) else float("nan")
