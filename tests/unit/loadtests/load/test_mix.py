"""SLO classes, and the draw of classes and images."""

import json
from pathlib import Path

import numpy as np
import pytest

from foveate.core.errors import SetupError
from loadtests.load.mix import MAX_REQUESTS, WeightedSloClass, plan_requests, slo_classes, zipf_shares

MIX = {"fast": {"deadline_ms": 50, "weight": 3}, "good": {"deadline_ms": 900.5, "min_quality": 0.95}}


def test_without_a_mix_there_is_one_class() -> None:
    assert slo_classes("", 120.0) == {"all": WeightedSloClass(deadline_ms=120)}


def test_a_mix_is_json_or_a_json_file(tmp_path: Path) -> None:
    (tmp_path / "mix.json").write_text(json.dumps(MIX))
    classes = slo_classes(json.dumps(MIX), 1)
    assert classes == slo_classes(str(tmp_path / "mix.json"), 1)
    assert classes["good"] == WeightedSloClass(deadline_ms=900.5, min_quality=0.95, weight=1)


@pytest.mark.parametrize(
    ("mix", "sentence"),
    [
        ("{", "the mix is invalid at the text: Invalid JSON"),
        ('{"a": {}}', r"the mix is invalid at a\.deadline_ms: Field required"),
        ('{"a": {"deadline_ms": 0}}', r"at a\.deadline_ms: Input should be greater than 0"),
        ('{"a": {"deadline_ms": 5, "colour": 1}}', r"at a\.colour: Extra"),
        ("{}", "the mix has no SLO class"),
        ("nowhere.json", r"cannot read the mix nowhere\.json: No such file"),
    ],
)
def test_an_invalid_mix_is_an_error_of_one_sentence(mix: str, sentence: str) -> None:
    with pytest.raises(SetupError, match=sentence):
        slo_classes(mix, 100)


def test_a_class_sends_headers_for_values_that_are_not_the_default() -> None:
    assert WeightedSloClass(deadline_ms=200).headers("x-tenant") == {"x-slo-ms": "200"}
    full = WeightedSloClass(deadline_ms=12.5, ttft_ms=3, min_quality=0.9, priority=-2, tenant="a")
    assert full.headers("x-account") == {
        "x-slo-ms": "12.5",
        "x-ttft-ms": "3",
        "x-min-quality": "0.9",
        "x-priority": "-2",
        "x-account": "a",
    }


def test_classes_are_drawn_by_weight_and_images_by_rank() -> None:
    requests = plan_requests(np.arange(20_000.0), [3, 1], 10, 1.0, seed=0)
    assert abs(np.mean(requests.slo_class == 0) - 0.75) < 0.02
    counts = np.bincount(requests.image, minlength=10) / 20_000
    assert np.abs(counts - zipf_shares(10, 1.0)).max() < 0.02
    again = plan_requests(np.arange(20_000.0), [3, 1], 10, 1.0, seed=0)
    assert (again.image == requests.image).all()
    other = plan_requests(np.arange(20_000.0), [3, 1], 10, 1.0, seed=1)
    assert (other.image != requests.image).any()


def test_zipf_makes_the_second_image_half_as_likely_as_the_first() -> None:
    share = zipf_shares(1000, 1.0)
    assert share[1] == pytest.approx(share[0] / 2)
    assert share.sum() == pytest.approx(1)
    assert zipf_shares(4, 0.0).tolist() == [0.25] * 4


@pytest.mark.parametrize("count", [0, MAX_REQUESTS + 1])
def test_a_run_has_at_least_one_and_at_most_max_requests(count: int) -> None:
    with pytest.raises(SetupError, match=f"has {count} requests"):
        plan_requests(np.zeros(count), [1], 1, 0.0, 0)
