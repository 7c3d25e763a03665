"""Answers per second of the engine and of its baselines."""

import pytest

from foveate.models.vlm.runner import ChatRunner
from loadtests.chat import throughput
from loadtests.chat.device import SharedDevice
from loadtests.chat.workload import ChatQuestion


def test_all_sides_are_measured_and_compared(
    runner: ChatRunner, device: SharedDevice, asked: list[ChatQuestion], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(throughput, "EQUAL", 6)
    figures = throughput.measure(runner, device, asked, 1)
    for run in ("equal", "mixed"):
        for way in ("sequential", "padded"):
            ratio = figures[f"{run}_served_per_s"] / figures[f"{run}_{way}_per_s"]
            key = (
                {"sequential": "sequential", "padded": "padded_batch"}[way]
                if run == "equal"
                else f"{way}_mixed"
            )
            assert figures[f"throughput_vs_{key}"] == pytest.approx(ratio, rel=0.01)
    ratio = figures["poisson_served_per_s"] / figures["poisson_padded_per_s"]
    assert figures["throughput_vs_padded_poisson"] == pytest.approx(ratio, rel=0.01)
    assert figures["poisson_per_s"] > 0 and figures["static_cache"] in (0, 1)
