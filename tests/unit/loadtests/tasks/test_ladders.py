"""Comparisons of the rungs of a ladder."""

from pathlib import Path

from loadtests.tasks.ladders import RungFigures, at_one_point, draw, span

RUNGS = [
    RungFigures("full", 0.83, 1.0, 10.0, 1.0),
    RungFigures("near", 0.821, 0.6, 5.0, 2.0),
    RungFigures("far", 0.7, 0.2, 2.5, 4.0),
]


def test_the_span_is_the_speed_up_of_the_fastest_rung() -> None:
    assert span(RUNGS) == 4.0


def test_the_fastest_rung_near_full_loses_at_most_a_point() -> None:
    assert at_one_point(RUNGS).plan == "near"


def test_the_plot_has_a_panel_per_model(tmp_path: Path) -> None:
    path = tmp_path / "ladders.png"
    draw({"a": RUNGS, "b": RUNGS[:1]}, path)
    assert path.read_bytes().startswith(b"\x89PNG")
