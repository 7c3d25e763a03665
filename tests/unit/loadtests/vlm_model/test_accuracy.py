"""The figures of right answers by plan and kind."""

import json
from pathlib import Path

import pytest

from foveate.core.plan import Plan
from foveate.models.profiling.chat_quality import ChatEvaluator, KindScores
from loadtests.vlm_model.accuracy import (
    kinds_of,
    measure,
    method_of,
    plans_of,
    row,
    smaller_plans_of,
    summary,
    trained_blind,
)
from tests.support.question_sets import answered, chat_model

pytestmark = pytest.mark.usefixtures("inference_on_one_thread")


def figures(**means: float) -> dict[str, float]:
    rows = (row(name, KindScores({"count": mean - 0.1, "name": mean + 0.1})) for name, mean in means.items())
    return {key: value for each in rows for key, value in each.items()}


def test_differences_are_in_points() -> None:
    measured = figures(
        full=0.9, blind=0.2, **{"pool:49": 0.895, "pool:16": 0.87, "guided:16": 0.85, "random:16": 0.7}
    )
    key = summary(measured)
    assert (key["exact_match_full"], key["blind"], key["blind_gap"]) == (0.9, 0.2, 70.0)
    assert (key["points_lost_49"], key["points_lost_16"], key["guided_minus_random_16"]) == (0.5, 3.0, 15.0)
    assert key["exact_match_worst_kind"] == key["exact_match_by_kind count"] == 0.8
    assert "blind_trained" not in key
    assert kinds_of(measured) == ["count", "name"]
    assert plans_of(measured) == ["pool:49", "pool:16", "guided:16", "random:16"]


def test_the_gap_is_to_the_better_blind_baseline() -> None:
    key = summary(figures(full=0.9, blind=0.2, blind_trained=0.5))
    assert (key["blind_gap"], key["blind_trained"]) == (40.0, 0.5)
    assert "points_lost_49" not in key


def test_the_last_check_of_a_log_counts(tmp_path: Path) -> None:
    rows = (
        {"step": 250, "minutes": 1, "loss": 1.0, "count": 0.1, "name": 0.2, "mean": 0.15},
        {"step": 500, "minutes": 2, "loss": 0.9, "count": 0.3, "name": 0.2, "mean": 0.25},
        {"step": 550, "minutes": 2, "loss": 0.8},
    )
    log = tmp_path / "chat-blind.jsonl"
    log.write_text("".join(json.dumps(each) + "\n" for each in rows))
    expected = {"blind_trained exact_match": 0.25, "blind_trained count": 0.3, "blind_trained name": 0.2}
    assert trained_blind(log) == expected
    log.write_text(json.dumps(rows[-1]))
    with pytest.raises(ValueError, match="has no check"):
        trained_blind(log)


def test_methods_have_options() -> None:
    assert method_of("merge:16:unmerge") == ("merge:unmerge", 16)
    assert method_of("pool:4") == ("pool", 4)


def test_plans_and_the_model_without_pictures_are_measured(tmp_path: Path) -> None:
    runner = chat_model(tmp_path).runner
    data = answered(tmp_path / "data", runner)
    sized = f"{runner.full.variant}@48/pool:1"
    plans = (runner.full, Plan.parse("pool:1", runner.full), Plan.parse(sized, runner.full))
    measured = measure(runner, ChatEvaluator(runner, data), plans)
    assert plans_of(measured) == ["pool:1"] and smaller_plans_of(measured) == [sized]
    assert measured[f"gflops {sized}"] < measured["gflops pool:1"] < measured["gflops full"]
    assert kinds_of(measured) == ["count", "name"]
    assert measured["full count"] == 1.0 and measured["full name"] == pytest.approx(2 / 3, abs=1e-3)
    names = ("full", "pool:1", sized, "blind")
    shares = {f"{name} {kind}" for name in names for kind in ("exact_match", "count", "name")}
    assert measured.keys() == shares | {f"gflops {name}" for name in names[:-1]}
