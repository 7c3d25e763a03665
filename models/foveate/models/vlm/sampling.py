"""The choice of the next token from the scores of the vocabulary: greedy or sampled."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foveate.core.chat import SamplingOptions
from foveate.core.errors import FoveateError, RunFailed
from foveate.models.vlm.constraints import JsonConstraint


@dataclass(frozen=True, slots=True)
class TokenChoice:
    """The next token of a sequence."""

    token: int
    logprob: float
    """Logarithm of its probability, at temperature 1, among the tokens that a constraint allows."""
    alternatives: tuple[tuple[int, float], ...] = ()
    """The most probable tokens with their logarithms, the first ahead."""


class Sampler:
    """Chooses the tokens of one sequence. It holds the sequence's own random numbers."""

    def __init__(self, options: SamplingOptions, constraint: JsonConstraint | None = None) -> None:
        """constraint: decides which tokens may come next; None allows all."""
        self.options, self._constraint = options, constraint
        self.takes_best = constraint is None and options.temperature == 0 and not options.top_logprobs
        """Whether `choose` gives the most probable token alone, whatever came before."""
        self._generator = torch.Generator()
        if options.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(options.seed)

    def choose(self, logprobs: Tensor) -> TokenChoice:
        """A token from logarithms of probabilities (V,) float32 on the CPU.

        Raises RunFailed where the constraint leaves no token.
        """
        options = self.options
        if self._constraint is not None:
            logprobs = among_allowed(logprobs, self._constraint.allowed())
        token = int(logprobs.argmax()) if options.temperature == 0 else self._sample(logprobs)
        likely = logprobs.topk(min(options.top_logprobs, len(logprobs)))
        pairs = zip(likely.indices.tolist(), likely.values.tolist(), strict=True)
        alternatives = tuple(pair for pair in pairs if pair[1] > -math.inf)
        if self._constraint is not None:
            self._constraint.accept(token)
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


def choose(logits: Tensor, samplers: Sequence[Sampler]) -> list[TokenChoice | FoveateError]:
    """The next token of each sequence from scores (B, V). A row with NaN or infinite scores fails alone."""
    scores = logits.float().cpu()
    finite, logprobs = scores.isfinite().all(-1).tolist(), scores.log_softmax(-1)
    # Together they take less time than one by one.
    tokens = logprobs.argmax(-1, keepdim=True)
    best = zip(tokens[:, 0].tolist(), logprobs.gather(-1, tokens)[:, 0].tolist(), strict=True)
    choices: list[TokenChoice | FoveateError] = []
    for row, (valid, sampler, pair) in enumerate(zip(finite, samplers, best, strict=True)):
        if not valid:
            choices.append(RunFailed("the model computed scores that are not finite"))
        else:
            choices.append(TokenChoice(*pair) if sampler.takes_best else _choose(sampler, logprobs[row]))
    return choices


def among_allowed(logprobs: Tensor, allowed: NDArray[np.bool_]) -> Tensor:
    """The logarithms of probabilities (V,) among the allowed tokens alone; -inf for others.

    Raises RunFailed if no token is allowed.
    """
    if not allowed.any():
        raise RunFailed("no token can follow in an answer with this JSON schema")
    hidden = torch.ones(len(logprobs), dtype=torch.bool)
    hidden[: len(allowed)] = torch.from_numpy(~allowed)
    return logprobs.masked_fill(hidden, -math.inf).log_softmax(-1)


def _choose(sampler: Sampler, logprobs: Tensor) -> TokenChoice | FoveateError:
    """The next token of one sequence. A sampler that fails fails its sequence alone."""
    try:
        return sampler.choose(logprobs)
    except FoveateError as error:
        return error
    except Exception as error:
        failure = RunFailed("the next token could not be chosen")
        failure.__cause__ = error
        return failure
