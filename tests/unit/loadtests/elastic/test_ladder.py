"""Comparisons of plans by latency and accuracy."""

from pathlib import Path

import pytest

from foveate.models.zoo.heldout import heldout
from loadtests.elastic.ladder import LadderPoint, best_fixed, draw, fastest_near_full, mixed, unseen

FIXED = [(1.0, 0.8), (2.0, 0.9), (4.0, 0.95)]


def point(plan: str, top1: float, speedup: float) -> LadderPoint:
    return LadderPoint(plan, top1, 1.0, 10 / speedup, speedup, 10 / speedup, speedup)


@pytest.mark.parametrize(("ms", "top1"), [(0.5, 0.0), (1.0, 0.8), (3.0, 0.9), (9.0, 0.95)])
def test_the_best_fixed_rung_takes_at_most_this_long(ms: float, top1: float) -> None:
    assert best_fixed(FIXED, ms) == top1


@pytest.mark.parametrize(("ms", "top1"), [(0.5, 0.0), (1.5, 0.85), (3.0, 0.925), (4.0, 0.95), (9.0, 0.95)])
def test_a_random_choice_interpolates_between_two_rungs(ms: float, top1: float) -> None:
    assert mixed(FIXED, ms) == pytest.approx(top1)


def test_the_fastest_plan_near_full_loses_at_most_a_point() -> None:
    points = [point("a", 0.90, 9.0), point("b", 0.981, 3.0), point("c", 0.985, 2.0), point("full", 0.99, 1.0)]
    assert fastest_near_full(points).plan == "b"


def test_half_of_the_scenes_is_unseen() -> None:
    indices = unseen(0)
    assert len(indices) == len(set(indices)) == len(heldout()) // 2
    assert indices == unseen(0) != unseen(1)


def test_the_plot_is_written(tmp_path: Path) -> None:
    path = tmp_path / "ladder.png"
    draw([point("a", 0.9, 3.0), point("content:0.9", 0.95, 2.0), point("full", 0.99, 1.0)], path)
    assert path.read_bytes().startswith(b"\x89PNG")
