"""Figures of chats: times of tokens, and what servers had in their caches."""

import math
from collections.abc import Iterable, Sequence

import numpy as np

from loadtests.load.chat_records import ChatRecord


def chat_figures(
    offered: Sequence[ChatRecord], answered: Sequence[ChatRecord], answering_s: float
) -> dict[str, float]:
    """Flat figures of chats; NaN for a figure without any data, empty without chats.

    offered: all chats; answered: those with an answer; answering_s: seconds until the last answer ended.
    `ttft` is the time to the first token, from the scheduled send; `token` is that from one token to the
    next, the mean of each answer; `gap` is the longest time between two pieces of text of an answer.
    """
    if not offered:
        return {}
    return {
        **_percentiles("ttft_ms", (chat.first_token_s for chat in answered), (50, 90, 99)),
        **_percentiles("token_ms", (chat.token_s for chat in answered), (50, 99)),
        **_percentiles("gap_ms", (chat.gap_s for chat in answered), (99,)),
        "answer_tokens_mean": _mean([chat.tokens for chat in answered]),
        "tokens_per_s": sum(chat.tokens for chat in answered) / answering_s,
        "cut_off": _mean([chat.finish == "length" for chat in answered]),
        "visual_tokens_mean": _mean([c.visual_tokens for c in answered if c.visual_tokens is not None]),
        "cached_share": _cached_share(answered),
        "follow_ups": _mean([chat.turn > 0 for chat in offered]),
        "repeated": _mean([chat.repeated and not chat.turn for chat in offered]),
    }


def _cached_share(chats: Sequence[ChatRecord]) -> float:
    """The share of the tokens of all prompts that were cached; NaN if the server does not report it."""
    known = [
        (chat.cached_tokens, chat.prompt_tokens)
        for chat in chats
        if chat.cached_tokens is not None and chat.prompt_tokens
    ]
    return sum(cached for cached, _ in known) / sum(total for _, total in known) if known else math.nan


def _percentiles(name: str, seconds: Iterable[float | None], percents: Sequence[int]) -> dict[str, float]:
    values = [1e3 * each for each in seconds if each is not None]
    return {f"{name}_p{p}": float(np.percentile(values, p)) if values else math.nan for p in percents}


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan
