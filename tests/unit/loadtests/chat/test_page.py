"""The page and the chart of the bench of chats."""

from pathlib import Path

import pytest

from loadtests.chat import charts
from loadtests.chat.page import page

FIGURES = {
    "greedy_questions": 200, "greedy_equal": 1.0, "throughput_vs_sequential": 4.0,
    "equal_sequential_per_s": 5.0, "equal_padded_per_s": 19.0, "equal_served_per_s": 20.0,
    "throughput_vs_padded_batch": 0.9, "poisson_served_per_s": 21.0, "poisson_padded_per_s": 10.5,
    "throughput_vs_padded_poisson": 2.0, "static_cache": 1.0, "short_alone_ms": 40.0, "short_beside_ms": 60.0,
    "short_beside_long": 1.5, "ttft_new_ms": 90.0, "ttft_prefix_hit_ms": 10.0, "ttft_prefix_hit_speedup": 9.0,
    "overload_attainment": 0.995, "overload_accuracy_loss_points": 1.5, "overload_unloaded_accuracy": 0.9,
    "overload_slo_attainment": 0.995, "overload_slo_accuracy": 0.885, "overload_full_attainment": 0.3,
    "overload_full_accuracy": 0.9, "overload_slo_plan full": 0.4, "overload_slo_plan pool:16": 0.595,
    "expired_prefills": 0, "event_loop_lag_p99_ms": 7.25,
}  # fmt: skip


def test_the_page_has_goals_and_tables() -> None:
    text = page(FIGURES)
    assert "| answers equal to those of `generate` | 100.0% | at least 100% | met |" in text
    assert "| first token with kept features, speed-up | - | at least 2 | not measured |" in text
    assert "| at once, 32 tokens each | 5.0 | 19.0 | 20.0 | 4.00 | 0.90 |" in text
    assert "| Poisson arrivals, mixed lengths | - | 10.5 | 21.0 | - | 2.00 |" in text
    assert "with a static cache" in " ".join(text.split())
    assert "| beside answers of 64 tokens in all other slots | 60.0 | 1.50 |" in text
    assert "| Foveate | 99.5% | 88.5% | 1.50 |" in text and "| full for all | 30.0% | 90.0% | 0.00 |" in text
    assert "| `pool:16` | 59.5% |" in text
    assert "| event_loop_lag_p99_ms, lag under load at p99, ms | 7.2 |" in text
    assert max(map(len, (line for line in text.splitlines() if not line.startswith("|")))) <= 120


@pytest.mark.parametrize("figures", [FIGURES, {}])
def test_the_chart_shows_what_was_measured(figures: dict[str, float], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = charts.draw(figures, tmp_path / "out")
    assert path.name == "chat.png" and path.stat().st_size > 1000
