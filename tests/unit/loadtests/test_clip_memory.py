"""The benchmark of memory, on a clip that is short enough to be made here."""

from pathlib import Path

import pytest

from loadtests import clip_memory


def test_what_a_clip_takes_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip_memory, "SECONDS", 4)
    found = clip_memory.measure(tmp_path)
    assert found["frames"] == 100
    assert clip_memory.FRAMES <= found["decoded"] <= 100
    assert 2 < found["peak_mb"] < 150  # a frame in RGB alone takes 2.6
    assert found["total_mb"] > found["peak_mb"]
    assert found["file_mb"] > 0
