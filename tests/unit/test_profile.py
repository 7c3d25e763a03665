"""Profiles: which plans are rungs, what the file says, how one is measured, resumed, found and drawn."""

import json
import logging
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from foveate.core.errors import BadPlan, SetupError
from foveate.core.outcome import Result
from foveate.core.plan import Plan
from foveate.core.profile import Data, Measurement, Profile, Setting, choose, worth_timing
from foveate.models import ladder_plot, load, profile, zoo
from foveate.models.candidates import candidates, parse
from foveate.models.checkpoint import Checkpoint, save
from foveate.models.geometry import Geometry
from foveate.models.pictures import Album, Pictures
from foveate.models.profile import Job, measure, partial_of
from foveate.models.runner import TorchRunner
from foveate.models.vit import ElasticViT

pytestmark = pytest.mark.usefixtures("one_thread")

HERE = Setting("a chip", 2, "fp32", "2.13", "3.11", "0.1", "2026-01-01")
GEOMETRY = Geometry(image_size=64, width=24, depth=4, heads=2, classes=5)
PLANS = ("full", "evit:0.6", "evit:0.2", "tiny@32")
PICTURES = 24


def plan(
    name: str, quality: float, gflops: float, seconds: float | None = None, rung: bool = False
) -> Measurement:
    """A measurement; `seconds` a picture in batches of 8."""
    latency = {} if seconds is None else {1: 99.0, 8: 8 * seconds}
    return Measurement(name, quality, None, gflops, 5, latency, rung)


def written(*measurements: Measurement, setting: Setting = HERE) -> Profile:
    return Profile("tiny", "0" * 64, Data("somewhere", 10, False), 0, setting, measurements)


def rungs(measurements: Sequence[Measurement]) -> list[str]:
    return [m.plan for m in written(*measurements).ladder]


FULL = plan("full", 1.0, 1.0)


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


@torch.no_grad()
def tiny(seed: int = 0, geometry: Geometry = GEOMETRY) -> Checkpoint:
    """A random model whose answers differ between pictures."""
    model, generator = ElasticViT(geometry).eval(), torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        gain = parameter.ndim == 1 and name.endswith("weight")
        parameter.copy_(1 + 0.1 * noise if gain else 0.2 * noise)
    return Checkpoint("tiny", geometry, model=model)


def shown(targets: Sequence[int] | None = None) -> Pictures:
    """Pictures that are stored as the seed of their noise."""
    items = tuple(str(i).encode() for i in range(PICTURES))
    return Pictures("noise", items, None if targets is None else tuple(targets))


def decode(data: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    patches = np.random.default_rng(int(data)).integers(0, 256, (4, 4, 3), np.uint8)
    return patches.repeat(16, 0).repeat(16, 1)


def album(targets: Sequence[int] | None = None) -> Album:
    return Album(shown(targets), decode, lambda *_: None)


def job(runner: TorchRunner, rounds: int = 2, seed: int = 0) -> Job:
    plans = [Plan.parse(text, runner.full) for text in PLANS]
    return Job(tuple(plans), batch_sizes=(1, 3), rounds=rounds, seed=seed)


def quiet(*_: object) -> None:
    """Watches nothing."""


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
    found = measure(runner, "abc", album(targets), job(runner), tmp_path / "p.json", quiet)
    assert found.data == Data("noise", PICTURES, labelled)
    assert {m.plan for m in found.measurements} == set(PLANS)
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
    found = measure(runner, "abc", album(), job(runner), target, quiet)
    assert Profile.read(target.read_text(), "x") == found
    assert (found.model, found.weights, found.seed) == ("tiny", "abc", 0)
    assert found.setting == load.setting("cpu", "fp32")
    assert [path.name for path in target.parent.iterdir()] == ["p.json"]
    assert found.ladder[-1].plan == "full"
    timed = [m for m in found.measurements if m.latency_s]
    assert {m.plan for m in timed} == {m.plan for m in worth_timing(found.measurements)}
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
        return {"full": 3.0, "evit:0.6": 2.0}.get(chosen.beside(runner.full), 1.0) * (number + 1)

    drawn = profile._drawn

    def counted(*arguments: Any) -> Any:
        nonlocal number
        number = arguments[-1]
        return drawn(*arguments)

    monkeypatch.setattr(profile, "_seconds", spy)
    monkeypatch.setattr(profile, "_drawn", counted)
    monkeypatch.setattr(profile, "worth_timing", tuple)
    found = measure(runner, "abc", album(), job(runner, rounds=3), tmp_path / "p.json", quiet)
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
    assert 0 < profile._seconds(runner, runner.full, [decode(b"1")] * 16, 5) < 10
    assert sizes == [5, 5, 5]


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

    monkeypatch.setattr(profile, "_seconds", seconds)
    return looks


@pytest.mark.parametrize("after", [0, 1, 4, 9, 13, 16, 24])
def test_an_interrupted_run_goes_on_and_ends_in_the_same_profile(
    after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    looks = steady(monkeypatch)
    caplog.set_level(logging.INFO)
    runner, target = TorchRunner(tiny()), tmp_path / "p.json"
    whole = measure(runner, "abc", album(), job(runner), tmp_path / "whole.json", quiet)
    a_round = len(looks) // 3  # the first warms up
    with pytest.raises(KeyboardInterrupt):
        measure(runner, "abc", album(), job(runner), target, Stopped(after))
    assert not target.exists()
    before = json.loads(partial_of(target).read_text())
    assert (len(before["kept"]) > 0, len(before["rounds"]) > 0) == (after >= 4, after >= 24)

    asked: list[int] = []
    run = runner.run

    def counted(batch: torch.Tensor, chosen: Plan) -> Any:
        asked.append(len(batch))
        return run(batch, chosen)

    monkeypatch.setattr(runner, "run", counted)
    looks.clear()
    assert measure(runner, "abc", album(), job(runner), target, quiet) == whole
    assert len(looks) == a_round * (3 - len(before["rounds"]))
    assert sum(asked) == PICTURES * (len(PLANS) - len(before["kept"]))
    assert "going on from" in caplog.text
    assert not partial_of(target).exists()


@pytest.mark.parametrize(
    "what", ["weights", "seed", "pictures", "rounds", "plans", "batch sizes", "precision"]
)
def test_what_another_job_left_is_not_used(
    what: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runner, target = TorchRunner(tiny()), tmp_path / "p.json"
    with pytest.raises(KeyboardInterrupt):
        measure(runner, "abc", album(), job(runner), target, Stopped(12))
    assert len(json.loads(partial_of(target).read_text())["kept"]) > 2
    mine, weights, labels = job(runner), "abc", None
    match what:
        case "weights":
            weights = "def"
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
    measure(runner, weights, album(labels), mine, target, quiet)
    assert re.search(rf"differs in [a-z, ]*{what}[a-z, ]*: starting anew", caplog.text)
    found = Profile.read(target.read_text(), "x")
    assert found.weights == weights
    assert found.data.labelled == (what == "pictures")


@pytest.mark.parametrize("junk", ["", "{", "[]", '{"job": 3}', '{"job": {}, "kept": [1]}'])
def test_a_damaged_partial_file_is_not_used(
    junk: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runner, target = TorchRunner(tiny()), tmp_path / "p.json"
    partial_of(target).write_text(junk)
    found = measure(runner, "abc", album(), job(runner, rounds=1), target, quiet)
    assert len(found.measurements) == len(PLANS)
    assert "not readable, so measuring starts anew" in caplog.text


def test_a_place_that_cannot_be_written_is_known_before_anything_is_measured(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    runner = TorchRunner(tiny())
    with pytest.raises(SetupError, match="cannot write"):
        measure(runner, "abc", album(), job(runner), tmp_path / "file" / "p.json", Stopped(0))


def test_labels_that_full_never_meets_are_refused(tmp_path: Path) -> None:
    runner = TorchRunner(tiny())
    wrong = [(index + 1) % 5 for index in named(runner, "full")]
    with pytest.raises(SetupError, match="full names every picture wrongly"):
        measure(runner, "abc", album(wrong), job(runner), tmp_path / "p.json", quiet)


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
    found = measure(runner, "abc", album(), job(runner, rounds=1), tmp_path / "p.json", quiet)
    told = {m.plan: m.quality for m in found.measurements}
    assert told["full"] == 1
    assert told["evit:0.6"] < agreed
    assert told["evit:0.6"] <= 0.75
    monkeypatch.setattr(runner, "run", failing_at_full)
    found = measure(runner, "abc", album(), job(runner, rounds=1), tmp_path / "p.json", quiet)
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

    measure(runner, "abc", album(), job(runner), tmp_path / "p.json", watch)
    assert list(told) == ["quality", "latency"]
    for steps in told.values():
        shares = [done / total for done, total in steps]
        assert shares == sorted(shares)
        assert (shares[0], shares[-1]) == (0, 1)


# What to try.


def test_as_many_plans_are_tried_as_a_person_waits_for() -> None:
    model = ElasticViT(Geometry())
    full = Plan("vit", 224)
    plain = candidates(model, full, quiet)
    for number in (4, 8, 10):
        model.exit_heads[str(number)] = nn.Identity()
    exits = candidates(model, full, quiet)
    assert plain[0] == exits[0] == full
    assert 20 <= len(plain) < len(exits) <= 40
    assert {p.image_size for p in plain} == {224, 160, 112}
    assert not any(p.exit for p in plain)
    assert {p.exit for p in exits} >= {"0.8", "0.9", "0.95"}
    assert {str(p) for p in plain} >= {
        "vit@224/evit:0.5/fp32",
        "vit@224/tome:8/fp32",
        "vit@112/evit:0.5/fp32",
    }


def test_what_the_model_cannot_run_is_not_tried() -> None:
    runner = TorchRunner(tiny(geometry=replace(GEOMETRY, class_token=False, pool="avg")))
    tried = candidates(runner.models["tiny"], runner.full, runner.check)
    assert tried[0] == runner.full
    assert not any(p.reducer.startswith("evit") for p in tried)
    for chosen in tried:
        runner.check(chosen)


def test_schedules_and_siblings_are_tried() -> None:
    model = ElasticViT(GEOMETRY)
    model.schedules = {"0.6": ((9, 9),) * 4}
    tried = candidates(model, Plan("tiny", 64), quiet, [Plan("tinier", 48)])
    assert Plan("tiny", 64, reducer="diffrate:0.6") in tried
    assert Plan("tinier", 48) in tried
    assert Plan("tinier", 48, reducer="evit:0.5") in tried


def test_plans_can_be_listed_and_a_number_is_a_size() -> None:
    runner = TorchRunner(tiny())
    listed = parse("evit:.5, 32,32/evit:0.7,full,evit:0.5,", runner.full, runner.check)
    texts = [chosen.beside(runner.full) for chosen in listed]
    assert texts == ["full", "evit:0.5", "tiny@32", "tiny@32/evit:0.7"]


@pytest.mark.parametrize("text", ["warp:9", "evit:7", "33", "other@64", "exit:0.9", "evit:0.5/bf16"])
def test_a_listed_plan_that_cannot_be_run_is_refused(text: str) -> None:
    runner = TorchRunner(tiny())
    with pytest.raises(BadPlan):
        parse(text, runner.full, runner.check)


# Finding it again.


@pytest.fixture
def homes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing is read from or left in the home of whoever runs the tests."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def file(homes: Path) -> Path:
    save(homes / "tiny.safetensors", tiny())
    return homes / "tiny.safetensors"


def profiled(file: Path) -> Profile:
    """Measure a file where `serve` will look for it."""
    runner, weights = load.load_unprofiled(str(file), "fp32", "cpu", 1)
    return measure(runner, weights, album(), job(runner, rounds=1), load.profile_path(str(file)), quiet)


def test_a_loaded_models_ladder_is_the_profiles(file: Path) -> None:
    found = profiled(file)
    assert (file.parent / "tiny.profile.json").exists()
    card = load.load(str(file), "fp32", "cpu", 1).card
    assert [rung.plan.beside(card.full) for rung in card.ladder] == [m.plan for m in found.ladder]
    for rung, m in zip(card.ladder, found.ladder, strict=True):
        assert (rung.gflops, rung.tokens, rung.quality) == (m.gflops, m.tokens, m.quality)
        assert rung.latency_s == m.latency_s
        assert rung.latency_s


def test_in_another_setting_its_latencies_are_refused_with_a_sentence(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    profiled(file)
    card = load.load(str(file), "bf16", "cpu", 1).card
    (record,) = [r for r in caplog.records if r.name == load.__name__]
    assert "in fp32, not" in record.getMessage()
    assert f"foveate profile {file}" in record.getMessage()
    assert all(rung.latency_s is None and rung.quality is not None for rung in card.ladder)


def test_a_profile_of_other_weights_is_ignored_with_a_warning(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    profiled(file)
    save(file, tiny(seed=1))
    card = load.load(str(file), "fp32", "cpu", 1).card
    assert "is a profile of another model" in caplog.text
    assert card.ladder[0].quality is None


@pytest.mark.parametrize("junk", [b"{", b"\xff\xfe"])
def test_an_unreadable_profile_stops_the_start(junk: bytes, file: Path) -> None:
    load.profile_path(str(file)).write_bytes(junk)
    with pytest.raises(SetupError, match=r"tiny\.profile\.json is not a readable profile"):
        load.load(str(file), "fp32", "cpu", 1)


def test_a_profile_with_a_rung_that_cannot_be_run_stops_the_start(file: Path) -> None:
    found = profiled(file)
    path = load.profile_path(str(file))
    strange = Measurement("warp:9", 0.1, None, 0.0001, 1, dict.fromkeys((1, 3), 1e-9))
    path.write_text(replace(found, measurements=choose([*found.measurements, strange])).text())
    with pytest.raises(SetupError, match="a rung that cannot be run here: there is no token reducer 'warp'"):
        load.load(str(file), "fp32", "cpu", 1)


def test_a_model_that_is_no_file_has_its_profile_in_the_data_folder(homes: Path) -> None:
    path = load.profile_path("hf-hub:timm/vit")
    assert path == homes / "data/foveate/profiles/hf-hub-timm-vit.json"
    here, checkpoint = load.setting("cpu", "fp32"), tiny()
    assert load.known("hf-hub:timm/vit", checkpoint, here) is None
    found = replace(written(FULL, setting=here), weights=load.digest(checkpoint))
    profile.write(path, found.text())
    assert load.known("hf-hub:timm/vit", checkpoint, here) == found


def test_a_persons_own_profile_comes_before_the_shipped_one(
    homes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, checkpoint = load.setting("cpu", "fp32"), tiny()
    shipped = replace(written(FULL, setting=here), weights=load.digest(checkpoint))
    profile.write(homes / "zoo" / "tiny.profile.json", shipped.text())
    monkeypatch.setattr(zoo, "shipped", lambda: homes / "zoo")
    assert load.known("tiny", checkpoint, here) == shipped
    own = replace(shipped, seed=5)
    profile.write(load.profile_path("tiny"), own.text())
    assert load.known("tiny", checkpoint, here) == own
    # A folder that cannot be entered holds none.
    (homes / "file").write_text("in the way")
    monkeypatch.setenv("XDG_DATA_HOME", str(homes / "file"))
    assert load.known("tiny", checkpoint, here) == shipped


def test_the_digest_is_of_names_shapes_and_values() -> None:
    same, other, renamed = tiny(), tiny(seed=1), tiny()
    assert load.digest(same) == load.digest(renamed)
    assert load.digest(same) != load.digest(other)
    head = nn.Linear(2, 2)
    same.model.exit_heads["1"], renamed.model.exit_heads["2"] = head, head
    assert load.digest(same) != load.digest(renamed)


# The picture.


def drawable(timed: bool = True) -> Profile:
    plans = [
        Measurement(
            f"evit:0.{k}", 1 - 0.5**k, None, (k + 15) / 30, 5, {1: 0.1, 8: (k + 15) / 60} if timed else {}
        )
        for k in range(1, 10)
    ]
    plans.append(Measurement("full", 1.0, None, 1.0, 9, {1: 0.12, 8: 0.5} if timed else {}))
    return written(*choose([*plans, plan("tiny@32", 0.1, 0.9, 0.04 if timed else None)]))


@pytest.mark.parametrize("timed", [True, False])
def test_the_ladder_is_drawn_the_same_every_time(timed: bool, tmp_path: Path) -> None:
    png, svg = ladder_plot.draw(drawable(timed), tmp_path / "tiny.profile")
    assert (png.name, svg.name) == ("tiny.profile.png", "tiny.profile.svg")
    with Image.open(png) as image:
        assert image.width == (1680 if timed else 840)
        assert len(image.convert("RGB").getcolors(10**6) or ()) > 20
    ElementTree.parse(svg)  # noqa: S314 -- our own file
    before = [path.read_bytes() for path in (png, svg)]
    ladder_plot.draw(drawable(timed), tmp_path / "tiny.profile")
    assert [path.read_bytes() for path in (png, svg)] == before


def test_rungs_are_named_where_no_name_covers_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    figures: list[Any] = []
    draw = Figure.draw_without_rendering

    def kept(figure: Any) -> None:
        figures.append(figure)
        draw(figure)

    monkeypatch.setattr(Figure, "draw_without_rendering", kept)
    ladder_plot.draw(drawable(), tmp_path / "x")
    draw(figures[0])
    for axis in figures[0].axes:
        names = {text.get_text(): Text.get_window_extent(text) for text in axis.texts}
        assert list(names) == [m.plan for m in drawable().ladder]
        for one, other in combinations(names.values(), 2):
            assert not one.overlaps(other)


def test_drawing_needs_matplotlib_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError) as missing:
        ladder_plot.draw(drawable(), tmp_path / "x")
    assert missing.value.name == "matplotlib"
