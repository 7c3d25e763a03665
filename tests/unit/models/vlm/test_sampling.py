"""The choice of the next token."""

import math
from collections import Counter

import pytest
import torch
from torch import Tensor

from foveate.core.chat import SamplingOptions
from foveate.core.errors import RunFailed
from foveate.models.vlm.sampling import Sampler, TokenChoice, choose

PROBABILITIES = torch.tensor([0.1, 0.5, 0.15, 0.25])


def drawn(options: SamplingOptions, count: int = 2000) -> Counter[int]:
    sampler = Sampler(options)
    return Counter(sampler.choose(PROBABILITIES.log()).token for _ in range(count))


def one(logits: Tensor, options: SamplingOptions) -> TokenChoice:
    choice = choose(logits[None], [Sampler(options)])[0]
    assert isinstance(choice, TokenChoice)
    return choice


def test_greedy_takes_the_highest_score() -> None:
    choice = one(PROBABILITIES.log() + 3, SamplingOptions(top_logprobs=2))
    assert choice.token == 1
    assert choice.logprob == pytest.approx(math.log(0.5))
    assert [token for token, _ in choice.alternatives] == [1, 3]
    assert [math.exp(logprob) for _, logprob in choice.alternatives] == pytest.approx([0.5, 0.25])


def test_samples_have_their_probabilities() -> None:
    counts = drawn(SamplingOptions(temperature=1, seed=1))
    for token, probability in enumerate(PROBABILITIES.tolist()):
        assert counts[token] / 2000 == pytest.approx(probability, abs=0.05)


@pytest.mark.parametrize(
    ("top_p", "tokens"), [(0.4, {1}), (0.5, {1}), (0.6, {1, 3}), (0.8, {1, 2, 3}), (1.0, {0, 1, 2, 3})]
)
def test_top_p_keeps_the_fewest_tokens_with_this_probability(top_p: float, tokens: set[int]) -> None:
    assert set(drawn(SamplingOptions(temperature=1, top_p=top_p, seed=1))) == tokens


def test_a_low_temperature_is_nearly_greedy() -> None:
    assert drawn(SamplingOptions(temperature=0.01, seed=1))[1] == 2000
    assert drawn(SamplingOptions(temperature=5e-324, seed=1), 5)[1] == 5


def test_the_probability_is_that_at_temperature_1() -> None:
    choice = one(PROBABILITIES.log(), SamplingOptions(temperature=2, seed=4))
    assert choice.logprob == pytest.approx(float(PROBABILITIES[choice.token].log()))


def test_a_seed_gives_the_same_tokens_again() -> None:
    def answer(seed: int | None) -> list[int]:
        sampler = Sampler(SamplingOptions(temperature=1, seed=seed))
        return [sampler.choose(PROBABILITIES.log()).token for _ in range(40)]

    assert answer(5) == answer(5)
    assert answer(5) != answer(6)
    assert answer(None) != answer(None)
    assert answer(-5) == answer(-5)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_row_that_is_not_finite_fails_alone(value: float) -> None:
    logits = PROBABILITIES.log().repeat(3, 1)
    logits[1, 2] = value
    first, failed, last = choose(logits, [Sampler(SamplingOptions()) for _ in range(3)])
    assert isinstance(failed, RunFailed)
    assert isinstance(first, TokenChoice) and isinstance(last, TokenChoice)
    assert first.token == last.token == 1


def test_the_best_tokens_of_a_batch_are_those_of_each_row_alone() -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    plain, listed = SamplingOptions(), SamplingOptions(top_logprobs=2)
    assert Sampler(plain).takes_best and not Sampler(listed).takes_best
    assert not Sampler(SamplingOptions(temperature=0.5, seed=1)).takes_best
    batch = choose(logits, [Sampler(plain), Sampler(listed), Sampler(plain)])
    for row, choice in zip(logits, batch, strict=True):
        [alone] = choose(row[None], [Sampler(listed)])
        assert isinstance(choice, TokenChoice) and isinstance(alone, TokenChoice)
        assert (choice.token, choice.logprob) == (alone.token, alone.logprob)
