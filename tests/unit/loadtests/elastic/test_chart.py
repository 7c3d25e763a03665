"""The plot of reducers, and the search for their budgets."""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest

from foveate.models.weights import hub
from loadtests.elastic.budgets import ARGUMENTS, closest, gflops
from loadtests.elastic.chart import ReducerPoint, draw, points_above


def test_the_argument_is_the_closest_to_the_budget() -> None:
    model = hub.load("vit-xs").model
    full = gflops(model, "none", 224)
    spec = closest(model, "tome", 0.6 * full, 224)
    assert spec is not None
    number = int(spec.removeprefix("tome:"))
    distance = [abs(gflops(model, f"tome:{n}", 224) - 0.6 * full) for n in (number - 1, number, number + 1)]
    assert min(distance) == distance[1]


def test_the_plot_has_a_panel_per_network(tmp_path: Path) -> None:
    path = tmp_path / "reducers.png"
    points = [ReducerPoint("full", "full", 1.0, 0.9), ReducerPoint("evit", "evit:0.5", 0.5, 0.8)]
    draw({"one network": points, "another": points[:1]}, path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_random_and_pooling_are_among_the_reducers_and_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {"random", "pooling"} <= ARGUMENTS.keys()
    points = [ReducerPoint("full", "full", 1.0, 0.9)]
    points += [ReducerPoint(name, f"{name}:1", gflops, 0.8) for name in ARGUMENTS for gflops in (0.5, 0.7)]
    figures: list[Any] = []
    monkeypatch.setattr(plt, "close", figures.append)
    draw({"one network": points}, tmp_path / "reducers.png")
    styles = {line.get_label(): line.get_linestyle() for line in figures[0].axes[0].lines}
    assert styles.keys() == {"full", *ARGUMENTS}
    assert [name for name, style in styles.items() if style == "--"] == ["pooling", "random"]


def test_reducers_are_compared_at_a_share_of_full() -> None:
    points = [ReducerPoint("full", "full", 1.0, 0.9)]
    points += [ReducerPoint("a", "a:1", 0.62, 0.85), ReducerPoint("a", "a:2", 0.4, 0.5)]
    points += [ReducerPoint("b", "b:1", 0.59, 0.86), ReducerPoint("b", "b:2", 0.8, 0.89)]
    assert points_above(points, "a", "b", 0.6) == -1.0
