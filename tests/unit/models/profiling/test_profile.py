"""Profiles: how one is measured, and how an interrupted run is resumed."""

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foveate.core.errors import SetupError
from foveate.core.outcome import Result
from foveate.core.plan import Plan
from foveate.core.profile import Measurement, Profile, ProfilingSet, worth_timing
from foveate.models.loading import load
from foveate.models.profiling import profile, timing
from foveate.models.profiling.profile import measure, partial_of
from foveate.models.runners.image import TorchRunner
from foveate.models.vit.stitch import StitchSpec
from foveate.models.weights.family import Family
from tests.support.measuring import (
    CONFIG,
    PICTURES,
    PLANS,
    album,
    decode,
    job,
    quiet,
    tiny,
    unprofiled,
)

pytestmark = pytest.mark.usefixtures("one_thread")


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
    assert found.data == ProfilingSet("noise", PICTURES, labelled)
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
    assert found.setting == load.setting("cpu", "fp32")
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
            seen.setdefault(key, []).append((chosen.parts, float(np.mean(np.stack(pixels)))))
        return {"full": 3.0, "evit:0.6": 2.0}.get(chosen.relative_to(runner.full), 1.0) * (number + 1)

    drawn = profile._drawn

    def counted(*arguments: Any) -> Any:
        nonlocal number
        number = arguments[-1]
        return drawn(*arguments)

    monkeypatch.setattr(profile, "seconds_each", spy)
    monkeypatch.setattr(profile, "_drawn", counted)
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
    assert 0 < timing.seconds_each(runner, runner.full, [decode(b"1")] * 16, 5) < 10
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
        looks.append(chosen.parts)
        return size * chosen.image_size * 1e-3

    monkeypatch.setattr(profile, "seconds_each", seconds)
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
    before = json.loads(partial_of(target).read_text())
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
    assert not partial_of(target).exists()


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
    assert len(json.loads(partial_of(target).read_text())["kept"]) > 2
    mine, weights, siblings, labels = job(runner), "abc", dict[str, str](), None
    match what:
        case "weights":
            weights = "def"
        case "siblings":
            siblings = {"tinier": "123"}
        case "stitches":
            lighter = tiny(1, replace(CONFIG, width=8, depth=1, heads=1), "router")
            joint = {StitchSpec("tiny", 2, "router", 1): torch.nn.Linear(8, CONFIG.width)}
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
    partial_of(target).write_text(junk)
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
    assert not partial_of(tmp_path).exists()


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
