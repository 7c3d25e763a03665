"""The page and the charts of the bench of the vision-language model."""

from pathlib import Path

import pytest

from loadtests.vlm_model import accuracy, charts
from loadtests.vlm_model.page import page

KINDS = ("count", "name")
PLANS = ("pool:4", "pool:16", "random:16", "uniform:16", "guided:16", "merge:16", "merge:16:unmerge")


@pytest.fixture
def figures() -> dict[str, float]:
    measured = {"questions": 5120.0, "pictures": 640.0, "generate_equal": 1.0, "prefill_speedup_16": 4.6}
    measured |= {"prefill full ms": 189.7, "prefill 16 ms": 41.3, "unmerging attention plain 16": 0.2}
    for number, name in enumerate(("full", *PLANS, "blind", "blind_trained")):
        measured |= {f"{name} {kind}": 0.95 - number / 20 for kind in ("exact_match", *KINDS)}
    for count, share in ((16, 0.5), (49, 0.6)):
        measured |= {f"vit-t-chat@160/pool:{count} {kind}": share for kind in ("exact_match", *KINDS)}
    measured |= {"gflops full": 2.034, "gflops pool:16": 1.4, "gflops vit-t-chat@160/pool:16": 0.8}
    return accuracy.summary(measured) | measured


def test_the_page_has_goals_kinds_methods_and_speed(figures: dict[str, float]) -> None:
    text = page(figures)
    assert "| right answers under full, mean over kinds | 95.0% | at least 85% | met |" in text
    assert "| points that pool:49 loses to full | - | at most 1 | not measured |" in text
    assert "| count | 95.0% | - | 85.0% |" in text
    assert "| merge:unmerge | - | 60.0% | 95.0% |" in text
    assert "| prefill | 189.7 | 41.3 | 4.60x |" in text
    assert "| attention | plain | 0.20 |" in text
    sizes = ("full | 95.0% | 2.03", "pool:16 | 85.0% | 1.40", "vit-t-chat@160/pool:49 | 60.0% | -")
    assert "".join(f"| {row} |\n" for row in (*sizes, "vit-t-chat@160/pool:16 | 50.0% | 0.80")) in text
    assert "vit-t-chat@160/pool |" not in text, "the table of methods has plans of full's size alone"
    assert "![mean](chatmodel-mean.png)" in text and "![count](chatmodel-count.png)" in text


def test_each_kind_has_a_chart(figures: dict[str, float], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    names = charts.draw(figures, tmp_path / "out")
    assert names == ["chatmodel-mean.png", "chatmodel-count.png", "chatmodel-name.png"]
    assert all((tmp_path / "out" / name).stat().st_size > 1000 for name in names)
