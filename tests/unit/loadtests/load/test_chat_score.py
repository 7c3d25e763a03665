"""Figures of chats."""

import math

import pytest

from loadtests.load.chat_records import ChatRecord
from loadtests.load.chat_score import chat_figures


def chat(first_token_s: float, turn: int = 0, repeated: bool = False, finish: str = "stop") -> ChatRecord:
    return ChatRecord("name", turn, repeated, 8, None, first_token_s, 0.01, 0.03, 4, finish, 20, 5, 16)


def test_figures_of_chats_are_flat() -> None:
    answered = [chat(0.1), chat(0.3, turn=1, repeated=True), chat(0.2, repeated=True, finish="length")]
    refused = ChatRecord("name", 0, False, 8)
    figures = chat_figures([*answered, refused], answered, 2.0)
    assert figures["ttft_ms_p50"] == pytest.approx(200)
    assert figures["token_ms_p50"] == pytest.approx(10)
    assert figures["gap_ms_p99"] == pytest.approx(30)
    assert (figures["tokens_per_s"], figures["answer_tokens_mean"]) == (6.0, 4.0)
    assert figures["cut_off"] == pytest.approx(1 / 3)
    assert (figures["cached_share"], figures["visual_tokens_mean"]) == (0.25, 16)
    assert (figures["follow_ups"], figures["repeated"]) == (0.25, 0.25), "shares of all offered"


def test_figures_without_data_are_nan_and_there_are_none_without_chats() -> None:
    assert chat_figures([], [], 1.0) == {}
    figures = chat_figures([ChatRecord("name", 0, False, 8)], [], 1.0)
    assert all(math.isnan(figures[name]) for name in ("ttft_ms_p50", "cached_share", "cut_off"))
    assert figures["tokens_per_s"] == 0
