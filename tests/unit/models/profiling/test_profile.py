"""Profiles: which plans are rungs, what the file says, and how one is measured and resumed."""

import json
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foveate.core.content import ContentRungs
from foveate.core.errors import SetupError
from foveate.core.outcome import Result
from foveate.core.plan import Plan
from foveate.core.profile import Data, Measurement, Profile, choose, worth_timing
from foveate.models.loading.machine import current_setting
from foveate.models.profiling import profile, timing
from foveate.models.profiling.profile import measure
from foveate.models.profiling.profile_state import partial_path
from foveate.models.runners.image import TorchRunner
from foveate.models.vit.stitch import StitchSpec
from foveate.models.weights.family import Family
from tests.support.measuring import (
    FULL,
    GEOMETRY,
    HERE,
    PICTURES,
    PLANS,
    album,
    decode,
    job,
    plan,
    quiet,
    tiny,
    unprofiled,
    written,
)

pytestmark = pytest.mark.usefixtures("one_thread")


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
def test_rungs_are_what_no_other_plan_beats(
    others: list[tuple[str, float, float]], ladder: list[str]
) -> None:
    by_gflops = [*(plan(*other) for other in others), FULL]
    assert rungs(choose(by_gflops)) == ladder
    assert rungs(choose(by_gflops[::-1])) == ladder
    # The same costs, in seconds; GFLOPs would say the opposite.
    by_seconds = [plan(name, quality, 9 - cost, cost) for name, quality, cost in others]
    assert rungs(choose([*by_seconds, plan("full", 1.0, 1.0, 1.0)])) == ladder


def test_once_full_is_timed_what_is_not_timed_is_no_rung() -> None:
    assert rungs(choose([plan("a", 0.9, 0.5), plan("full", 1.0, 1.0, 1.0)])) == ["full"]


costs = st.integers(1, 60).map(lambda n: n / 40)
measured = st.lists(st.tuples(st.integers(0, 8).map(lambda n: n / 8), costs), max_size=12)


@given(measured)
def test_a_ladder_rises_and_nothing_cheaper_is_better(found: list[tuple[float, float]]) -> None:
    plans = [plan(f"p{i}", *values) for i, values in enumerate(found)]
    chosen = written(*choose([*plans, FULL]))
    *below, full = chosen.ladder
    assert full.plan == "full"
    for one, other in pairwise(below):
        assert one.gflops < other.gflops
        assert one.quality < other.quality
    for left_out in (m for m in chosen.measurements if not m.rung and 1.02 * m.gflops < 1):
        # Two within 2% may both give way to a third that beats one and is as cheap as the other.
        assert any(m.quality >= left_out.quality and m.gflops <= 1.02 * left_out.gflops for m in below)


@given(measured)
def test_only_what_is_matched_for_much_less_is_not_timed(found: list[tuple[float, float]]) -> None:
    plans = [*(plan(f"p{i}", *values) for i, values in enumerate(found)), FULL]
    timed = worth_timing(plans)
    assert FULL in timed
    assert {m.plan for m in choose(plans) if m.rung} <= {m.plan for m in timed}
    for m in (m for m in plans if m not in timed):
        assert any(o.quality >= m.quality and 1.25 * o.gflops < m.gflops for o in plans)


def test_a_plan_is_not_timed_either_where_one_as_good_takes_much_less() -> None:
    found = [plan("a", 0.9, 0.5), plan("b", 0.9, 0.62), plan("c", 0.9, 0.63), plan("d", 0.95, 0.63), FULL]
    assert [m.plan for m in worth_timing(found)] == ["a", "b", "d", "full"]


def test_a_profile_reads_back_what_it_wrote() -> None:
    found = written(*choose([plan("evit:0.5", 0.9, 0.5, 0.5), plan("full", 1.0, 1.0, 1.0)]))
    assert Profile.read(found.text(), "x") == found
    assert found.ladder[0].latency_s == {1: 99.0, 8: 4.0}


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
def test_a_file_that_says_something_else_is_refused_in_one_sentence(
    old: str, new: str, sentence: str
) -> None:
    text = written(plan("evit:0.5", 0.9, 0.5, 0.5), plan("full", 1.0, 1.0, 1.0)).text()
    assert old in text
    with pytest.raises(SetupError, match=rf"^here\.json is not a readable profile: .*{sentence}") as refused:
        Profile.read(text.replace(old, new, 1), "here.json")
    assert "\n" not in refused.value.detail


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where everything lies in parsed JSON, containers too."""
    yield path
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield from leaves(inner, (*path, key))


@pytest.mark.parametrize(
    "edit", [None, -1, 0, 2**70, 1e-300, 0.5, True, "", "x/y", "full", [], [[]], {}, {"1": 1}]
)
def test_whatever_a_hand_puts_anywhere_is_read_or_refused_in_one_sentence(edit: Any) -> None:
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
            found = Profile.read(json.dumps(edited[0]), "here.json")
            assert found.latency_on(replace(HERE, threads=9)).ladder[-1].plan == "full"
        except SetupError as error:
            refused += 1
            assert "\n" not in error.detail
            assert error.detail.startswith("here.json is not a readable profile: ")
    assert refused > 20


@pytest.mark.parametrize("change", [{"device": "other chip"}, {"threads": 1}, {"precision": "bf16"}])
def test_latencies_from_elsewhere_are_refused_and_qualities_kept(change: dict[str, Any]) -> None:
    found = written(*choose([plan("a", 0.9, 0.5, 0.5), plan("full", 1.0, 1.0, 1.0)]))
    elsewhere = replace(HERE, **change)
    differs = found.setting.differs_from(elsewhere)
    assert differs is not None
    for value in (*change.values(), getattr(HERE, next(iter(change)))):
        assert str(value) in differs
    there = found.latency_on(elsewhere)
    assert [(m.plan, m.quality, m.latency_s) for m in there.ladder] == [("a", 0.9, {}), ("full", 1.0, {})]


def test_other_versions_are_no_reason_to_refuse_latencies() -> None:
    found = written(plan("full", 1.0, 1.0, 1.0))
    later = replace(HERE, torch="3.0", python="3.14", foveate="9", date="2030-01-01")
    assert found.latency_on(later) is found
    assert found.setting.differs_from(later) is None


def test_without_latencies_the_rungs_that_gflops_contradict_go() -> None:
    """Those measured elsewhere stay rungs; plans that were none do not come back for their GFLOPs."""
    timed = [plan("a", 0.8, 0.7, 0.3), plan("b", 0.9, 0.5, 0.5), plan("c", 0.85, 0.4, 0.6)]
    found = written(*choose([*timed, plan("full", 1.0, 1.0, 1.0)]))
    assert [m.plan for m in found.ladder] == ["a", "b", "full"]
    assert [m.plan for m in found.latency_on(replace(HERE, threads=9)).ladder] == ["b", "full"]


# Measuring.


def asked_for(found: Profile) -> list[Measurement]:
    """What the job's own plans were measured to be; choosing by content may have added more."""
    return [m for m in found.measurements if not m.plan.startswith("content")]


def answers(runner: TorchRunner, text: str) -> list[Result]:
    """What the model says to each picture alone."""
    chosen = Plan.parse(text, runner.full)
    found = []
    for i in range(PICTURES):
        (result,) = runner.run(runner.stack([decode(str(i).encode())], chosen), chosen)
        assert isinstance(result, Result)
        found.append(result)
    return found


def named(runner: TorchRunner, text: str) -> list[int]:
    return [int(result.scores.argmax()) for result in answers(runner, text)]


def half_right(runner: TorchRunner) -> list[int]:
    """Labels of which full gets every second one right."""
    return [(index + number % 2) % 5 for number, index in enumerate(named(runner, "full"))]


@pytest.mark.parametrize("labelled", [True, False])
def test_quality_is_what_is_kept_of_fulls_accuracy_or_else_agreement_with_full(
    labelled: bool, tmp_path: Path
) -> None:
    runner = TorchRunner(tiny())
    targets = half_right(runner) if labelled else None
    found = measure(unprofiled(runner), album(targets), job(runner), tmp_path / "p.json", quiet)
    assert found.data == Data("noise", PICTURES, labelled)
    assert {m.plan for m in asked_for(found)} == set(PLANS)
    wanted = targets or named(runner, "full")
    told = {m.plan: m for m in found.measurements}
    right = {p: np.mean([a == b for a, b in zip(named(runner, p), wanted, strict=True)]) for p in PLANS}
    assert right["evit:0.2"] not in (right["full"], 0)
    for text in PLANS:
        assert told[text].quality == pytest.approx(min(1, right[text] / right["full"]), abs=1e-6)
        assert told[text].accuracy == (pytest.approx(right[text], abs=1e-6) if labelled else None)
        results = answers(runner, text)
        assert told[text].gflops == pytest.approx(np.mean([r.gflops for r in results]), abs=1e-6)
        assert told[text].tokens == round(np.mean([r.tokens for r in results]))


def test_the_file_is_the_profile_and_nothing_else_is_left(tmp_path: Path) -> None:
    runner, target = TorchRunner(tiny()), tmp_path / "new" / "p.json"
    found = measure(unprofiled(runner), album(), job(runner), target, quiet)
    assert Profile.read(target.read_text(), "x") == found
    assert (found.model, found.weights, found.seed) == ("tiny", "abc", 0)
    assert found.setting == current_setting("cpu", "fp32")
    assert [path.name for path in target.parent.iterdir()] == ["p.json"]
    assert found.ladder[-1].plan == "full"
    timed = [m for m in asked_for(found) if m.latency_s]
    assert {m.plan for m in timed} == {m.plan for m in worth_timing(asked_for(found))}
    assert all(set(m.latency_s) == {1, 3} for m in timed)


def test_rounds_give_every_plan_the_same_pictures_and_others_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = TorchRunner(tiny())
    seen: dict[tuple[int, int], list[tuple[str, float]]] = {}
    number = -1

    def spy(_: TorchRunner, chosen: Plan, pixels: Sequence[Any], size: int) -> float:
        if len(pixels) > size:  # not the warm-up
            key = (number, size)
            seen.setdefault(key, []).append((chosen.steps, float(np.mean(np.stack(pixels)))))
        return {"full": 3.0, "evit:0.6": 2.0}.get(chosen.relative_to(runner.full), 1.0) * (number + 1)

    drawn = profile._round_images

    def counted(*arguments: Any) -> Any:
        nonlocal number
        number = arguments[-1]
        return drawn(*arguments)

    monkeypatch.setattr(profile, "mean_batch_seconds", spy)
    monkeypatch.setattr(profile, "_round_images", counted)
    monkeypatch.setattr(profile, "worth_timing", tuple)
    found = measure(unprofiled(runner), album(), job(runner, rounds=3), tmp_path / "p.json", quiet)
    assert set(seen) == {(r, s) for r in range(3) for s in (1, 3)}
    assert all(len(calls) == len(PLANS) and len({mean for _, mean in calls}) == 1 for calls in seen.values())
    assert len({calls[0][1] for calls in seen.values()}) == 3
    assert len({tuple(steps for steps, _ in calls) for calls in seen.values()}) > 1
    # The median of rounds that took once, twice and three times as long.
    assert {m.plan: m.latency_s[3] for m in found.measurements if m.plan in ("full", "evit:0.6")} == {
        "full": 6.0,
        "evit:0.6": 4.0,
    }


def test_the_clock_is_a_real_one_and_covers_whole_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    runner, sizes = TorchRunner(tiny()), []
    run = runner.run

    def counted(batch: torch.Tensor, chosen: Plan) -> Any:
        sizes.append(len(batch))
        return run(batch, chosen)

    monkeypatch.setattr(runner, "run", counted)
    assert 0 < timing.mean_batch_seconds(runner, runner.full, [decode(b"1")] * 16, 5) < 10
    assert sizes == [5, 5, 5, 5], "one to warm up"


class Stopped:
    """Presses Ctrl-C the nth time that progress is told."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self, *_: object) -> None:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt


def steady(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A clock under which two runs measure the same; the list it gives grows with every look at it."""
    looks: list[str] = []

    def seconds(_: TorchRunner, chosen: Plan, pixels: Sequence[Any], size: int) -> float:
        looks.append(chosen.steps)
        return size * chosen.image_size * 1e-3

    monkeypatch.setattr(profile, "mean_batch_seconds", seconds)
    return looks


@pytest.mark.parametrize("after", [0, 1, 4, 9, 13, 16, 24, 28])
def test_an_interrupted_run_goes_on_and_ends_in_the_same_profile(
    after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    looks = steady(monkeypatch)
    caplog.set_level(logging.INFO)
    runner, target = TorchRunner(tiny(), max_batch=8), tmp_path / "p.json"
    whole = measure(unprofiled(runner), album(), job(runner), tmp_path / "whole.json", quiet)
    a_round = len(looks) // 2
    with pytest.raises(KeyboardInterrupt):
        measure(unprofiled(runner), album(), job(runner), target, Stopped(after))
    assert not target.exists()
    before = json.loads(partial_path(target).read_text())
    assert (len(before["kept"]) > 0, len(before["rounds"]) > 0) == (after >= 4, after >= 24)

    asked: list[int] = []
    run = runner.run

    def counted(batch: torch.Tensor, chosen: Plan) -> Any:
        asked.append(len(batch))
        return run(batch, chosen)

    monkeypatch.setattr(runner, "run", counted)
    looks.clear()
    assert measure(unprofiled(runner), album(), job(runner), target, quiet) == whole
    assert len(looks) == a_round * (2 - len(before["rounds"]))
    assert sum(asked) == PICTURES * (len(PLANS) - len(before["kept"]))
    assert "going on from" in caplog.text
    assert not partial_path(target).exists()


@pytest.mark.parametrize(
    "what",
    ["weights", "siblings", "stitches", "seed", "pictures", "rounds", "plans", "batch sizes", "precision"],
)
def test_what_another_job_left_is_not_used(
    what: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runner, target = TorchRunner(tiny()), tmp_path / "p.json"
    with pytest.raises(KeyboardInterrupt):
        measure(unprofiled(runner), album(), job(runner), target, Stopped(12))
    assert len(json.loads(partial_path(target).read_text())["kept"]) > 2
    mine, weights, siblings, labels = job(runner), "abc", dict[str, str](), None
    match what:
        case "weights":
            weights = "def"
        case "siblings":
            siblings = {"tinier": "123"}
        case "stitches":
            lighter = tiny(1, replace(GEOMETRY, width=8, depth=1, heads=1), "scout")
            joint = {StitchSpec("tiny", 2, "scout", 1): torch.nn.Linear(8, GEOMETRY.width)}
            runner = TorchRunner(Family(tiny(), (lighter,), joint))
        case "seed":
            mine = job(runner, seed=1)
        case "pictures":
            labels = half_right(runner)
        case "rounds":
            mine = job(runner, rounds=1)
        case "plans":
            mine = replace(mine, plans=mine.plans[:3])
        case "batch sizes":
            mine = replace(mine, batch_sizes=(2,))
        case "precision":
            runner = TorchRunner(tiny(), "bf16")
            mine = job(runner)
    measure(unprofiled(runner, weights, **siblings), album(labels), mine, target, quiet)
    assert re.search(rf"differs in [a-z, ]*{what}[a-z, ]*: starting anew", caplog.text)
    found = Profile.read(target.read_text(), "x")
    assert found.weights == weights
    assert found.data.labelled == (what == "pictures")


@pytest.mark.parametrize("junk", ["", "{", "[]", '{"job": 3}', '{"job": {}, "kept": [1]}'])
def test_a_damaged_partial_file_is_not_used(
    junk: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runner, target = TorchRunner(tiny()), tmp_path / "p.json"
    partial_path(target).write_text(junk)
    found = measure(unprofiled(runner), album(), job(runner, rounds=1), target, quiet)
    assert len(asked_for(found)) == len(PLANS)
    assert "not readable, so measuring starts anew" in caplog.text


def test_a_place_that_cannot_be_written_is_known_before_anything_is_measured(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    runner = TorchRunner(tiny())
    with pytest.raises(SetupError, match="cannot write"):
        measure(unprofiled(runner), album(), job(runner), tmp_path / "file" / "p.json", Stopped(0))
    assert not caplog.text, "nothing was left there that could be unreadable"


def test_a_folder_in_the_profiles_place_is_known_before_anything_is_measured(tmp_path: Path) -> None:
    runner = TorchRunner(tiny())
    with pytest.raises(SetupError, match="it is a folder"):
        measure(unprofiled(runner), album(), job(runner), tmp_path, Stopped(0))
    assert not partial_path(tmp_path).exists()


def test_labels_that_full_never_meets_are_refused(tmp_path: Path) -> None:
    runner = TorchRunner(tiny())
    wrong = [(index + 1) % 5 for index in named(runner, "full")]
    with pytest.raises(SetupError, match="full names every picture wrongly"):
        measure(unprofiled(runner), album(wrong), job(runner), tmp_path / "p.json", quiet)


def test_a_failed_answer_is_a_wrong_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = TorchRunner(tiny(), max_batch=4)
    run = runner.run

    def failing(batch: torch.Tensor, chosen: Plan) -> Any:
        results = list(run(batch, chosen))
        if chosen.reducer == "evit:0.6":
            results[0] = RuntimeError("no")
        return results

    def failing_at_full(batch: torch.Tensor, chosen: Plan) -> Any:
        results = list(run(batch, chosen))
        return [RuntimeError("no"), *results[1:]] if chosen == runner.full else results

    agreed = np.mean([a == b for a, b in zip(named(runner, "evit:0.6"), named(runner, "full"), strict=True)])
    monkeypatch.setattr(runner, "run", failing)
    found = measure(unprofiled(runner), album(), job(runner, rounds=1), tmp_path / "p.json", quiet)
    told = {m.plan: m.quality for m in found.measurements}
    assert told["full"] == 1
    assert told["evit:0.6"] < agreed
    assert told["evit:0.6"] <= 0.75
    monkeypatch.setattr(runner, "run", failing_at_full)
    found = measure(unprofiled(runner), album(), job(runner, rounds=1), tmp_path / "p.json", quiet)
    monkeypatch.setattr(runner, "run", run)
    assert found.full.quality == 1
    pairs = list(zip(named(runner, "evit:0.6"), named(runner, "full"), strict=True))
    rest = [one == other for number, (one, other) in enumerate(pairs) if number % 4]
    told = {m.plan: m.quality for m in found.measurements}
    assert told["evit:0.6"] == pytest.approx(np.mean(rest), abs=1e-6)


def test_progress_rises_to_its_total_in_every_stage(tmp_path: Path) -> None:
    told: dict[str, list[tuple[int, int]]] = {}
    runner = TorchRunner(tiny())

    def watch(stage: str, what: str, done: int, total: int) -> None:
        told.setdefault(stage, []).append((done, total))

    measure(unprofiled(runner), album(), job(runner), tmp_path / "p.json", watch)
    assert list(told)[:2] == ["quality", "latency"]
    for steps in (told["quality"], told["latency"]):
        shares = [done / total for done, total in steps]
        assert shares == sorted(shares)
        assert (shares[0], shares[-1]) == (0, 1)
