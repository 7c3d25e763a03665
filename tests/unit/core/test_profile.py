"""Profiles: which plans become rungs, what a profile file may contain, and when its latencies hold."""

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
from foveate.core.profile import Measurement, Profile, choose, worth_timing
from tests.support.measuring import FULL, HERE, plan, written


def rungs(measurements: Sequence[Measurement]) -> list[str]:
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
def test_rungs_are_the_plans_that_no_other_plan_dominates(
    others: list[tuple[str, float, float]], ladder: list[str]
) -> None:
    by_gflops = [*(plan(*other) for other in others), FULL]
    assert rungs(choose(by_gflops)) == ladder
    assert rungs(choose(by_gflops[::-1])) == ladder
    # The same costs in seconds. The GFLOPs have the opposite order.
    by_seconds = [plan(name, quality, 9 - cost, cost) for name, quality, cost in others]
    assert rungs(choose([*by_seconds, plan("full", 1.0, 1.0, 1.0)])) == ladder


def test_a_plan_without_latency_is_no_rung_once_full_is_timed() -> None:
    assert rungs(choose([plan("a", 0.9, 0.5), plan("full", 1.0, 1.0, 1.0)])) == ["full"]


costs = st.integers(1, 60).map(lambda n: n / 40)
measured = st.lists(st.tuples(st.integers(0, 8).map(lambda n: n / 8), costs), max_size=12)


@given(measured)
def test_a_ladder_rises_in_cost_and_quality(candidates: list[tuple[float, float]]) -> None:
    plans = [plan(f"p{i}", *values) for i, values in enumerate(candidates)]
    chosen = written(*choose([*plans, FULL]))
    *below, full = chosen.ladder
    assert full.plan == "full"
    for cheaper, dearer in pairwise(below):
        assert cheaper.gflops < dearer.gflops
        assert cheaper.quality < dearer.quality
    for left_out in (m for m in chosen.measurements if not m.rung and 1.02 * m.gflops < 1):
        # Two plans within 2% may both lose to a third that beats one and costs the same as the other.
        assert any(m.quality >= left_out.quality and m.gflops <= 1.02 * left_out.gflops for m in below)


@given(measured)
def test_only_a_plan_that_a_much_cheaper_one_matches_is_not_timed(
    candidates: list[tuple[float, float]],
) -> None:
    plans = [*(plan(f"p{i}", *values) for i, values in enumerate(candidates)), FULL]
    timed = worth_timing(plans)
    assert FULL in timed
    assert {m.plan for m in choose(plans) if m.rung} <= {m.plan for m in timed}
    for m in (m for m in plans if m not in timed):
        assert any(o.quality >= m.quality and 1.25 * o.gflops < m.gflops for o in plans)


def test_a_plan_is_not_timed_if_an_equally_good_one_costs_a_quarter_less() -> None:
    candidates = [
        plan("a", 0.9, 0.5),
        plan("b", 0.9, 0.62),
        plan("c", 0.9, 0.63),
        plan("d", 0.95, 0.63),
        FULL,
    ]
    assert [m.plan for m in worth_timing(candidates)] == ["a", "b", "d", "full"]


def test_a_profile_is_read_as_it_was_written() -> None:
    profile = written(*choose([plan("evit:0.5", 0.9, 0.5, 0.5), plan("full", 1.0, 1.0, 1.0)]))
    assert Profile.read(profile.text(), "x") == profile
    assert profile.ladder[0].latency_s == {1: 99.0, 8: 4.0}


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ('"seed": 0', '"seed": 0, "colour": 1', "colour: Unexpected keyword"),
        ('"seed": 0', '"seed": "0"', "seed: Input should be a valid integer"),
        ('"quality": 0.9', '"quality": 1.1', "measurements.0.quality: .*less than or equal to 1"),
        ('"gflops": 0.5', '"gflops": NaN', "measurements.0.gflops: .*finite"),
        ('"gflops": 0.5', '"gflops": 0', "measurements.0.gflops: .*greater than 0"),
        ('"evit:0.5"', '"evit;0.5"', "is not a part of a plan"),
        ('"evit:0.5"', '"full"', "the plans of a profile differ"),
        ('"full"', '"evit:0.7"', "full is among them"),
        ('"1": 99.0', '"one": 99.0', "measurements.0.latency_s.one"),
        ('"threads": 2,', "", "setting.threads: Field required"),
        ('"model": "tiny"', '"model": "-"', "starts with variant@size"),
        ("{", "", "it: Invalid JSON"),
    ],
)
def test_an_invalid_file_is_refused_in_one_sentence(old: str, new: str, sentence: str) -> None:
    text = written(plan("evit:0.5", 0.9, 0.5, 0.5), plan("full", 1.0, 1.0, 1.0)).text()
    assert old in text
    with pytest.raises(SetupError, match=rf"^here\.json is not a readable profile: .*{sentence}") as refused:
        Profile.read(text.replace(old, new, 1), "here.json")
    assert "\n" not in refused.value.detail


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values in parsed JSON, containers included."""
    yield path
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield from leaves(inner, (*path, key))


@pytest.mark.parametrize(
    "edit", [None, -1, 0, 2**70, 1e-300, 0.5, True, "", "x/y", "full", [], [[]], {}, {"1": 1}]
)
def test_any_value_anywhere_is_read_or_refused_in_one_sentence(edit: Any) -> None:
    content = ContentRungs(("tiny@32", "full"), ((1.5, 2.5, 3.5),), (-0.125,))
    whole = written(*choose([plan("tiny@32", 0.9, 0.5, 0.5), plan("full", 1.0, 1.0, 1.0)]))
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
            assert error.detail.startswith("here.json is not a readable profile: ")
    assert refused > 20


@pytest.mark.parametrize("change", [{"device": "other chip"}, {"threads": 1}, {"precision": "bf16"}])
def test_latencies_of_another_setting_are_dropped_and_qualities_kept(change: dict[str, Any]) -> None:
    profile = written(*choose([plan("a", 0.9, 0.5, 0.5), plan("full", 1.0, 1.0, 1.0)]))
    elsewhere = replace(HERE, **change)
    differs = profile.setting.differs_from(elsewhere)
    assert differs is not None
    for value in (*change.values(), getattr(HERE, next(iter(change)))):
        assert str(value) in differs
    there = profile.latency_on(elsewhere)
    assert [(m.plan, m.quality, m.latency_s) for m in there.ladder] == [("a", 0.9, {}), ("full", 1.0, {})]


def test_other_versions_do_not_drop_latencies() -> None:
    profile = written(plan("full", 1.0, 1.0, 1.0))
    later = replace(HERE, torch="3.0", python="3.14", foveate="9", date="2030-01-01")
    assert profile.latency_on(later) is profile
    assert profile.setting.differs_from(later) is None


def test_without_latencies_rungs_that_gflops_contradict_are_dropped() -> None:
    """Other rungs stay, and plans that were no rungs do not become rungs by their GFLOPs."""
    timed = [plan("a", 0.8, 0.7, 0.3), plan("b", 0.9, 0.5, 0.5), plan("c", 0.85, 0.4, 0.6)]
    profile = written(*choose([*timed, plan("full", 1.0, 1.0, 1.0)]))
    assert [m.plan for m in profile.ladder] == ["a", "b", "full"]
    assert [m.plan for m in profile.latency_on(replace(HERE, threads=9)).ladder] == ["b", "full"]
