"""Latencies of single chats."""

import asyncio

import pytest

from foveate.models.vlm.runner import ChatRunner
from loadtests.chat import latency
from loadtests.chat.device import SharedDevice, serving
from loadtests.chat.workload import SHORT, ChatQuestion, ask


def test_latencies_and_their_ratios(
    runner: ChatRunner, device: SharedDevice, asked: list[ChatQuestion], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "REPEATS", 2)
    monkeypatch.setattr(latency, "CACHED_PLANS", {"": "full", "_guided_16": "guided:4"})
    figures = latency.measure(runner, device, asked[:3], 1)
    assert all(value > 0 for value in figures.values())
    for kind in ("beside_long", "in_padded_batch"):
        key = {"beside_long": "short_beside_ms"}.get(kind, f"short_{kind}_ms")
        assert figures[f"short_{kind}"] == pytest.approx(figures[key] / figures["short_alone_ms"], rel=0.01)
    for kind in ("feature_hit", "prefix_hit"):
        ratio = figures["ttft_new_ms"] / figures[f"ttft_{kind}_ms"]
        assert figures[f"ttft_{kind}_speedup"] == pytest.approx(ratio, rel=0.01)
    assert "ttft_feature_hit_speedup_guided_16" in figures
    assert "ttft_prefix_hit_speedup_guided_16" not in figures


def test_a_prefix_is_kept_by_the_chats_that_are_timed(
    runner: ChatRunner, device: SharedDevice, asked: list[ChatQuestion]
) -> None:
    async def cached() -> list[int]:
        async with serving(runner, device) as engine:
            call = asked[0].call(SHORT, runner.full)
            return [(await ask(engine, call)).cached_tokens for _ in range(2)]

    first, second = asyncio.run(cached())
    assert first == 0 < second
