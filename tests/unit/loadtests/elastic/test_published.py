"""Reducers on the shape of DeiT-S, next to the published figures."""

import pytest

from foveate.models.layers.config import ViTConfig
from loadtests.elastic import published
from loadtests.elastic.published import Comparison, PublishedSetting, compare


def test_differences_are_relative_to_the_paper_and_to_the_prediction() -> None:
    comparison = Comparison(PublishedSetting("evit:0.7", 3.0, "a paper"), 3.3, 1.2, 1.5, 0.1)
    assert comparison.error == pytest.approx(0.1)
    assert comparison.kept == pytest.approx(0.8)


def test_a_setting_is_measured_against_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "DEIT_S", ViTConfig(width=64, depth=6, heads=2))
    (comparison,) = compare((PublishedSetting("evit:0.5", 1.0, "a paper"),), rounds=1)
    assert 1 < comparison.predicted < 2.5
    assert comparison.speedup > 0
    assert 0 < comparison.deciding < 0.5
