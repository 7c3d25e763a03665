"""The plot of a ladder."""

import sys
from itertools import combinations
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from PIL import Image

from foveate.core.profile import Measurement, Profile, mark_rungs
from foveate.models.profiling import ladder_plot
from tests.support.measuring import plan, written


def drawable(timed: bool = True) -> Profile:
    plans = [
        Measurement(
            f"evit:0.{k}", 1 - 0.5**k, None, (k + 15) / 30, 5, {1: 0.1, 8: (k + 15) / 60} if timed else {}
        )
        for k in range(1, 10)
    ]
    plans.append(Measurement("full", 1.0, None, 1.0, 9, {1: 0.12, 8: 0.5} if timed else {}))
    return written(*mark_rungs([*plans, plan("tiny@32", 0.1, 0.9, 0.04 if timed else None)]))


@pytest.mark.parametrize("timed", [True, False])
def test_the_plot_of_a_profile_is_reproducible(timed: bool, tmp_path: Path) -> None:
    png, svg = ladder_plot.draw(drawable(timed), tmp_path / "tiny.profile")
    assert (png.name, svg.name) == ("tiny.profile.png", "tiny.profile.svg")
    with Image.open(png) as image:
        assert image.width == (1680 if timed else 840)
        assert len(image.convert("RGB").getcolors(10**6) or ()) > 20
    ElementTree.parse(svg)  # noqa: S314 -- our own file
    before = [path.read_bytes() for path in (png, svg)]
    ladder_plot.draw(drawable(timed), tmp_path / "tiny.profile")
    assert [path.read_bytes() for path in (png, svg)] == before


def test_names_of_rungs_do_not_overlap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    figures: list[Any] = []
    draw = Figure.draw_without_rendering

    def recorded(figure: Any) -> None:
        figures.append(figure)
        draw(figure)

    monkeypatch.setattr(Figure, "draw_without_rendering", recorded)
    ladder_plot.draw(drawable(), tmp_path / "x")
    draw(figures[0])
    for axis in figures[0].axes:
        names = {text.get_text(): Text.get_window_extent(text) for text in axis.texts}
        assert list(names) == [m.plan for m in drawable().ladder]
        for first, second in combinations(names.values(), 2):
            assert not first.overlaps(second)


def lines(profile: Profile, path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, list[float]]]:
    """For each panel, the x values of its lines by label."""
    from matplotlib.figure import Figure

    figures: list[Any] = []
    draw = Figure.draw_without_rendering

    def recorded(figure: Any) -> None:
        figures.append(figure)
        draw(figure)

    monkeypatch.setattr(Figure, "draw_without_rendering", recorded)
    ladder_plot.draw(profile, path)
    return [{line.get_label(): list(line.get_xdata()) for line in axis.lines} for axis in figures[0].axes]


def test_baselines_are_lines_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = [plan(f"{name}:0.{k}", 0.4 + k / 20, k / 10, None if k > 6 else k / 99)
                for name in ("random", "pooling") for k in (8, 6, 4)]  # fmt: skip
    profile = written(*mark_rungs([*drawable().measurements, *compared]))
    by_latency, by_gflops = lines(profile, tmp_path / "x", monkeypatch)
    for name in ("random", "pooling"):
        assert by_gflops[name] == [0.4, 0.6, 0.8]
        assert len(by_latency[name]) == 2  # one was not timed
    assert len(by_gflops["ladder"]) == len(profile.ladder)


def test_a_profile_without_baselines_has_no_such_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for panel in lines(drawable(), tmp_path / "x", monkeypatch):
        assert not panel.keys() & {"random", "pooling"}


def test_a_missing_matplotlib_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError) as missing:
        ladder_plot.draw(drawable(), tmp_path / "x")
    assert missing.value.name == "matplotlib"
