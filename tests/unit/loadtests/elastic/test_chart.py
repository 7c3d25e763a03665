"""The plot of reducers, and the search for their budgets."""

from pathlib import Path

from foveate.models.weights import hub
from loadtests.elastic.budgets import closest, gflops
from loadtests.elastic.chart import ReducerPoint, draw


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
