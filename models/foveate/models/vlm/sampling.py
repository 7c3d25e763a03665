"""The choice of the next token from the scores of the vocabulary: greedy or sampled."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.core.chat import SamplingOptions
from foveate.core.errors import RunFailed


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
        _choose(sampler, row) if valid else RunFailed("the model computed scores that are not finite")
        for valid, row, sampler in zip(finite, logprobs, samplers, strict=True)
    ]


def _choose(sampler: Sampler, logprobs: Tensor) -> TokenChoice | RunFailed:
    """The next token of one sequence. A sampler that fails fails its sequence alone."""
    try:
        return sampler.choose(logprobs)
    except Exception as error:
        failure = RunFailed("the next token could not be chosen")
        failure.__cause__ = error
        return failure
