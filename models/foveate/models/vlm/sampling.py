"""The choice of the next token from the scores of the vocabulary: greedy or sampled."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.core.errors import BadRequest, RunFailed

MAX_TEMPERATURE = 2.0
MAX_ALTERNATIVES = 20
MAX_STOPS = 4
MAX_SEED = 2**63 - 1
"""These four are the limits of OpenAI's API."""


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """How an answer is generated. Raises BadRequest for values out of range."""

    max_tokens: int = 64
    """Tokens of the answer at most."""
    temperature: float = 0.0
    """0: always the token with the highest score."""
    top_p: float = 1.0
    """Sample among the most probable tokens that together have this probability."""
    seed: int | None = None
    """The same seed gives the same answer. None: a random seed."""
    stop: tuple[str, ...] = ()
    """The answer ends before the first of these texts."""
    top_logprobs: int = 0
    """For each token of the answer, the number of most probable tokens to report."""

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise BadRequest(f"max_tokens must be at least 1, not {self.max_tokens}")
        if not 0 <= self.temperature <= MAX_TEMPERATURE:
            raise BadRequest(f"temperature must be from 0 to {MAX_TEMPERATURE:g}, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise BadRequest(f"top_p must be above 0 and at most 1, not {self.top_p}")
        if self.seed is not None and not -MAX_SEED <= self.seed <= MAX_SEED:
            raise BadRequest(f"seed must be a whole number of 64 bits, not {self.seed}")
        if len(self.stop) > MAX_STOPS or not all(self.stop):
            raise BadRequest(f"stop takes at most {MAX_STOPS} texts, and none of them is empty")
        if not 0 <= self.top_logprobs <= MAX_ALTERNATIVES:
            raise BadRequest(f"top_logprobs must be from 0 to {MAX_ALTERNATIVES}, not {self.top_logprobs}")


@dataclass(frozen=True, slots=True)
class TokenChoice:
    """The next token of a sequence."""

    token: int
    logprob: float
    """Logarithm of its probability, at temperature 1."""
    alternatives: tuple[tuple[int, float], ...] = ()
    """The most probable tokens with their logarithms, the first ahead."""


class Sampler:
    """Chooses the tokens of one sequence. It holds the sequence's own random numbers."""

    def __init__(self, options: SamplingOptions) -> None:
        self.options = options
        self._generator = torch.Generator()
        if options.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(options.seed)

    def choose(self, logprobs: Tensor) -> TokenChoice:
        """A token from logarithms of probabilities (V,) float32 on the CPU."""
        options = self.options
        token = int(logprobs.argmax()) if options.temperature == 0 else self._sample(logprobs)
        likely = logprobs.topk(min(options.top_logprobs, len(logprobs)))
        alternatives = tuple(zip(likely.indices.tolist(), likely.values.tolist(), strict=True))
        return TokenChoice(token, float(logprobs[token]), alternatives)

    def _sample(self, logprobs: Tensor) -> int:
        """A random token among the most probable ones ("The Curious Case of Neural Text Degeneration",
        section 3.1: nucleus sampling)."""
        scores = (logprobs - logprobs.max()).double() / self.options.temperature
        ordered, tokens = scores.softmax(-1).sort(descending=True)
        # The first token always stays: nothing is ahead of it.
        ahead = ordered.cumsum(-1) - ordered
        kept = ordered.masked_fill(ahead >= self.options.top_p, 0)
        return int(tokens[torch.multinomial(kept, 1, generator=self._generator)])


def choose(logits: Tensor, samplers: Sequence[Sampler]) -> list[TokenChoice | RunFailed]:
    """The next token of each sequence from scores (B, V). A row with NaN or infinite scores fails alone."""
    scores = logits.float().cpu()
    finite, logprobs = scores.isfinite().all(-1).tolist(), scores.log_softmax(-1)
    return [
        sampler.choose(row) if valid else RunFailed("the model computed scores that are not finite")
        for valid, row, sampler in zip(finite, logprobs, samplers, strict=True)
    ]
