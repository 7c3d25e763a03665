"""Profiles: which plans are rungs, the file, and latencies of another environment."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.core.content import ContentRungs
from foveate.core.errors import SetupError
from foveate.core.profile import Measurement, Profile, mark_rungs, worth_timing
from tests.support.measuring import FULL, HERE, plan, written


def rungs(measurements: Sequence[Measurement]) -> list[str]:
    """Plans of the ladder, cheapest first."""
    return [m.plan for m in written(*measurements).ladder]


@pytest.mark.parametrize(
    ("others", "ladder"),
    [
        ([], ["full"]),
        ([("a", 0.9, 0.5)], ["a", "full"]),
        ([("a", 0.9, 0.5), ("b", 0.8, 0.6)], ["a", "full"]),
        ([("a", 0.8, 0.5), ("b", 0.9, 0.6)], ["a", "b", "full"]),
        ([("a", 0.9, 0.5), ("b", 0.9, 0.6)], ["a", "full"]),
        ([("a", 0.9, 0.5), ("b", 0.9, 0.5)], ["a", "full"]),
        ([("a", 0.9, 1.1)], ["full"]),
        ([("a", 0.9, 0.99)], ["full"]),
        ([("a", 1.0, 0.99)], ["full"]),
        ([("a", 1.0, 0.97)], ["a", "full"]),
        ([("a", 0.90, 0.500), ("b", 0.91, 0.509)], ["b", "full"]),
        ([("a", 0.90, 0.500), ("b", 0.91, 0.511)], ["a", "b", "full"]),
        ([("a", 1.0, 0.5), ("b", 1.0, 0.4), ("c", 0.99, 0.45)], ["b", "full"]),
    ],
)
def test_rungs_are_the_pareto_optimal_plans(
    others: list[tuple[str, float, float]], ladder: list[str]
) -> None:
    by_gflops = [*(plan(*other) for other in others), FULL]
    assert rungs(mark_rungs(by_gflops)) == ladder
    assert rungs(mark_rungs(by_gflops[::-1])) == ladder
    # The same costs in seconds. By GFLOPs the order would be reversed.
    by_seconds = [plan(name, quality, 9 - cost, cost) for name, quality, cost in others]
    assert rungs(mark_rungs([*by_seconds, plan("full", 1.0, 1.0, 1.0)])) == ladder


def test_a_baseline_is_no_rung_and_dominates_none() -> None:
    better = [
        plan("random:0.5", 1.0, 0.3),
        plan("a@32/pooling:0.5", 1.0, 0.2),
        plan("evit:0.5", 0.9, 0.5),
        FULL,
    ]
    assert [m.baseline for m in better] == ["random", "pooling", None, None]
    assert [plan(text, 1.0, 1.0).baseline for text in ("uniform:16", "pool:16")] == ["uniform", None]
    assert rungs(mark_rungs(better)) == ["evit:0.5", "full"]
    assert [m.plan for m in worth_timing(better)] == ["random:0.5", "a@32/pooling:0.5", "evit:0.5", "full"]
    dear = [plan("random:0.5", 0.8, 0.7), *better[2:]]
    assert [m.plan for m in worth_timing(dear)] == ["evit:0.5", "full"]
    untimed = written(*mark_rungs(better)).latency_on(replace(HERE, threads=9))
    assert [m.plan for m in untimed.ladder] == ["evit:0.5", "full"]


def test_an_untimed_plan_is_no_rung_once_full_is_timed() -> None:
    assert rungs(mark_rungs([plan("a", 0.9, 0.5), plan("full", 1.0, 1.0, 1.0)])) == ["full"]


costs = st.integers(1, 60).map(lambda n: n / 40)
measured = st.lists(st.tuples(st.integers(0, 8).map(lambda n: n / 8), costs), max_size=12)


@given(measured)
def test_cost_and_quality_rise_along_the_ladder(values: list[tuple[float, float]]) -> None:
    plans = [plan(f"p{i}", *pair) for i, pair in enumerate(values)]
    chosen = written(*mark_rungs([*plans, FULL]))
    *below, full = chosen.ladder
    assert full.plan == "full"
    for lower, upper in pairwise(below):
        assert lower.gflops < upper.gflops
        assert lower.quality < upper.quality
    for left_out in (m for m in chosen.measurements if not m.rung and 1.02 * m.gflops < 1):
        # Of two plans within 2%, both may be dominated by a third: better than one, as cheap as the other.
        assert any(m.quality >= left_out.quality and m.gflops <= 1.02 * left_out.gflops for m in below)


@given(measured)
def test_a_plan_is_skipped_only_if_another_is_much_cheaper(
    values: list[tuple[float, float]],
) -> None:
    plans = [*(plan(f"p{i}", *pair) for i, pair in enumerate(values)), FULL]
    timed = worth_timing(plans)
    assert FULL in timed
    assert {m.plan for m in mark_rungs(plans) if m.rung} <= {m.plan for m in timed}
    for m in (m for m in plans if m not in timed):
        assert any(o.quality >= m.quality and 1.25 * o.gflops < m.gflops for o in plans)


def test_a_plan_is_skipped_if_one_of_equal_quality_needs_much_less() -> None:
    plans = [plan("a", 0.9, 0.5), plan("b", 0.9, 0.62), plan("c", 0.9, 0.63), plan("d", 0.95, 0.63), FULL]
    assert [m.plan for m in worth_timing(plans)] == ["a", "b", "d", "full"]


def test_a_profile_survives_its_file() -> None:
    profile = written(*mark_rungs([plan("evit:0.5", 0.9, 0.5, 0.5), plan("full", 1.0, 1.0, 1.0)]))
    assert Profile.read(profile.text(), "x") == profile
    assert profile.ladder[0].latency_s == {1: 99.0, 8: 4.0}


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ('"seed": 0', '"seed": 0, "colour": 1', "colour: Unexpected keyword"),
        ('"seed": 0', '"seed": "0"', "seed: Input should be a valid integer"),
        ('"quality": 0.9', '"quality": 1.1', "measurements.0.quality: .*less than or equal to 1"),
        ('"gflops": 0.5', '"gflops": NaN', "measurements.0.gflops: .*finite"),
        ('"gflops": 0.5', '"gflops": -1', "measurements.0.gflops: .*greater than or equal to 0"),
        ('"evit:0.5"', '"evit;0.5"', "is not a valid plan part"),
        ('"evit:0.5"', '"full"', "the plans of a profile must be unique"),
        ('"full"', '"evit:0.7"', "include full"),
        ('"1": 99.0', '"one": 99.0', "measurements.0.latency_s.one"),
        ('"threads": 2,', "", "setting.threads: Field required"),
        ('"model": "tiny"', '"model": "-"', "must start with variant@size"),
        ("{", "", "document: Invalid JSON"),
    ],
)
def test_an_invalid_file_is_refused_in_one_sentence(old: str, new: str, sentence: str) -> None:
    text = written(plan("evit:0.5", 0.9, 0.5, 0.5), plan("full", 1.0, 1.0, 1.0)).text()
    assert old in text
    with pytest.raises(SetupError, match=rf"^here\.json is not a valid profile: .*{sentence}") as refused:
        Profile.read(text.replace(old, new, 1), "here.json")
    assert "\n" not in refused.value.detail


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all values in parsed JSON, containers included."""
    yield path
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield from leaves(inner, (*path, key))


@pytest.mark.parametrize(
    "edit", [None, -1, 0, 2**70, 1e-300, 0.5, True, "", "x/y", "full", [], [[]], {}, {"1": 1}]
)
def test_any_edit_of_the_file_is_read_or_refused_in_one_sentence(edit: Any) -> None:
    content = ContentRungs(("tiny@32", "full"), ((1.5, 2.5, 3.5),), (-0.125,))
    whole = written(*mark_rungs([plan("tiny@32", 0.9, 0.5, 0.5), plan("full", 1.0, 1.0, 1.0)]))
    whole = replace(whole, content=content, siblings={"a": "b"}, schedules={"0.7": ((3, 2), (2, 1))})
    refused = 0
    for path in leaves(json.loads(whole.text())):
        holder = edited = [json.loads(whole.text())]
        for key in (inside := (0, *path))[:-1]:
            holder = holder[key]
        holder[inside[-1]] = edit
        try:
            profile = Profile.read(json.dumps(edited[0]), "here.json")
            assert profile.latency_on(replace(HERE, threads=9)).ladder[-1].plan == "full"
        except SetupError as error:
            refused += 1
            assert "\n" not in error.detail
            assert error.detail.startswith("here.json is not a valid profile: ")
    assert refused > 20


@pytest.mark.parametrize("change", [{"device": "other chip"}, {"threads": 1}, {"precision": "bf16"}])
def test_latencies_of_another_environment_are_dropped_and_qualities_kept(change: dict[str, Any]) -> None:
    profile = written(*mark_rungs([plan("a", 0.9, 0.5, 0.5), plan("full", 1.0, 1.0, 1.0)]))
    elsewhere = replace(HERE, **change)
    differs = profile.setting.differs_from(elsewhere)
    assert differs is not None
    for value in (*change.values(), getattr(HERE, next(iter(change)))):
        assert str(value) in differs
    there = profile.latency_on(elsewhere)
    assert [(m.plan, m.quality, m.latency_s) for m in there.ladder] == [("a", 0.9, {}), ("full", 1.0, {})]


def test_latencies_hold_for_other_versions() -> None:
    profile = written(plan("full", 1.0, 1.0, 1.0))
    later = replace(HERE, torch="3.0", python="3.14", foveate="9", date="2030-01-01")
    assert profile.latency_on(later) is profile
    assert profile.setting.differs_from(later) is None


def test_without_latencies_only_rungs_in_the_order_of_gflops_stay() -> None:
    """Plans that were no rungs before do not become rungs."""
    timed = [plan("a", 0.8, 0.7, 0.3), plan("b", 0.9, 0.5, 0.5), plan("c", 0.85, 0.4, 0.6)]
    profile = written(*mark_rungs([*timed, plan("full", 1.0, 1.0, 1.0)]))
    assert [m.plan for m in profile.ladder] == ["a", "b", "full"]
    assert [m.plan for m in profile.latency_on(replace(HERE, threads=9)).ladder] == ["b", "full"]
