"""The measurement of memory, with a short video."""

from pathlib import Path

import pytest

from loadtests import clip_memory


def test_memory_and_time_of_a_video_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip_memory, "SECONDS", 4)
    figures = clip_memory.measure(tmp_path)
    assert figures["frames"] == 100
    assert clip_memory.FRAMES <= figures["decoded"] <= 100
    assert 2 < figures["peak_mb"] < 150  # a frame in RGB alone takes 2.6
    assert figures["total_mb"] > figures["peak_mb"]
    assert figures["file_mb"] > 0
