"""Teaching a ladder to choose by content: from which rungs, on which pictures, and what it is worth."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foveate.core.content import ContentRungs
from foveate.core.errors import SetupError
from foveate.core.outcome import Result
from foveate.core.plan import Plan
from foveate.core.profile import Measurement, Profile, choose
from foveate.models.loading.load import ImageModelLoader
from foveate.models.loading.loader import LoadOptions
from foveate.models.loading.profile_store import profile_path
from foveate.models.profiling import content_profile
from foveate.models.profiling import profile as profiling
from foveate.models.profiling.content_profile import (
    CERTAINTIES,
    LearnedContent,
    choices,
    learn,
    learning_steps,
    run_plan,
    suffices,
    top1_classes,
    with_content,
)
from foveate.models.profiling.profile import measure
from foveate.models.profiling.profile_state import ProfilingJob, partial_path
from foveate.models.runners.image import TorchRunner
from foveate.models.weights.checkpoint import save
from tests.support import measuring, scouted
from tests.support.measuring import plan, quiet, tiny, unprofiled, written
from tests.support.scouted import EVERY, SCOUT, Seen, album, is_hard

pytestmark = pytest.mark.usefixtures("one_thread")

CONTENT = {f"content:{certainty}" for certainty in CERTAINTIES}


def measured(runner: TorchRunner, pictures: Seen, *texts: str) -> Profile:
    """What `profile` would know before it learns, without any clock."""
    own = runner.full
    every = list(range(len(pictures)))
    targets = pictures.dataset.targets
    of_full = top1_classes(run_plan(runner, pictures, every, own))
    wanted = of_full if targets is None else np.array(targets)
    found = []
    for text in (*texts, "full"):
        results = run_plan(runner, pictures, every, Plan.parse(text, own))
        right = float((top1_classes(results) == wanted).mean())
        quality = min(1.0, right / float((of_full == wanted).mean()))
        gflops = float(np.mean([result.gflops for result in results if isinstance(result, Result)]))
        found.append(Measurement(text, quality, right, gflops, 5, {}))
    return replace(written(*choose(found)), weights="abc")


def told(profile: Profile) -> dict[str, Measurement]:
    return {m.plan: m for m in profile.measurements}


def clock(_: TorchRunner, chosen: Plan, pixels: Sequence[Any], size: int) -> float:
    return size * (
        1.0 if (chosen.variant, chosen.content) == ("tiny", None) else 0.1
    )  # the scout's hook asks full


def taught_by(
    runner: TorchRunner, pictures: Seen, before: Profile, sizes: Sequence[int], rounds: int
) -> Profile:
    """The profile after all of the steps."""
    steps = list(learning_steps(runner, pictures, before, sizes, rounds, LearnedContent(), quiet))
    return with_content(before, steps[-1] if steps else LearnedContent())


def taught(pictures: Seen, rounds: int = 1) -> tuple[TorchRunner, Profile, Profile]:
    """A runner, and its profile before and after."""
    runner = scouted.runner()
    before = measured(runner, pictures, SCOUT)
    return runner, before, taught_by(runner, pictures, before, (1, 4), rounds)


# From which rungs.


def rung(text: str, quality: float, gflops: float, seconds: float | None = None) -> Measurement:
    return plan(text, quality, gflops, seconds, rung=True)


@pytest.mark.parametrize(
    ("others", "wanted"),
    [
        ([], []),
        ([("a", 0.9, 0.5)], [("a", "full")]),
        ([("a", 0.79, 0.5)], []),
        ([("a", 0.8, 0.5)], [("a", "full")]),
        ([("a", 0.99, 0.5)], []),
        ([("a", 0.9, 0.3), ("b", 0.99, 0.5)], [("a", "b", "full")]),
        ([("a", 0.9, 0.3), ("b", 0.95, 0.4)], [("a", "full"), ("b", "full")]),
        ([("a", 0.9, 0.3), ("b", 0.95, 0.4), ("c", 0.99, 0.5)], [("a", "c", "full"), ("b", "c", "full")]),
        ([("a", 0.9, 0.3), ("b", 0.99, 0.5), ("c", 0.995, 0.6)], [("a", "b", "full")]),
        (
            [(f"p{n}", 0.81 + n / 100, 0.1 + n / 20) for n in range(8)],
            [(f"p{n}", "full") for n in range(2, 8)],
        ),
        ([("a", 0.9, 0.2), ("content:0.9", 0.97, 0.4)], [("a", "full")]),
    ],
)
def test_each_scout_is_offered_with_the_cheapest_reliable_rung_and_full(
    others: list[tuple[str, float, float]], wanted: list[tuple[str, ...]]
) -> None:
    def offered(*rungs: Measurement) -> list[tuple[str, ...]]:
        return [tuple(m.plan for m in found) for found in choices(written(*rungs))]

    assert offered(*(rung(*other) for other in others), rung("full", 1.0, 1.0)) == wanted
    timed = [rung(text, quality, 5.0, cost) for text, quality, cost in others]
    assert offered(*timed, rung("full", 1.0, 1.0, 1.0)) == wanted


def test_plans_that_are_no_rungs_are_not_offered() -> None:
    assert choices(written(plan("a", 0.9, 0.5), rung("full", 1.0, 1.0))) == []


def test_the_scout_that_costs_least_in_the_end_is_taken() -> None:
    runner, pictures = scouted.runner(), album()
    dear, cheap = rung(SCOUT, 0.9, 0.8), rung(SCOUT, 0.9, 0.1)
    for order in ([dear, cheap], [cheap, dear]):
        offered = [(scout, rung("full", 1.0, 1.0)) for scout in order]
        best = learn(runner, pictures, range(len(pictures)), offered, quiet)
        assert best is not None
        assert best.rungs == (SCOUT, "full")
    useless = (rung("evit:0.1", 0.9, 0.9), rung("full", 1.0, 1.0))
    best = learn(runner, pictures, range(len(pictures)), [useless, (cheap, useless[1])], quiet)
    assert best is not None
    assert best.rungs[0] == SCOUT


# On which pictures.


def test_what_is_learnt_from_is_not_measured_on(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures, learnt = album(61), list[int]()

    def watched(runner: TorchRunner, seen: Seen, indices: Sequence[int], *rest: Any) -> ContentRungs | None:
        seen.seen.clear()
        found = learn(runner, seen, indices, *rest)
        learnt.extend(seen.seen)
        seen.seen.clear()
        return found

    monkeypatch.setattr(content_profile, "learn", watched)
    taught(pictures, rounds=3)
    first, second = set(learnt), set(pictures.seen)
    assert not first & second
    assert first | second == set(range(61))
    assert abs(len(first) - len(second)) == 1
    assert first != set(range(len(first))), "the halves are drawn, for a folder is sorted by class"


def test_the_seed_draws_the_halves() -> None:
    runner, pictures = scouted.runner(), album(60)
    before = measured(runner, pictures, SCOUT)
    once, again = (taught_by(runner, pictures, before, (1,), 1) for _ in range(2))
    assert once == again
    other = taught_by(runner, pictures, replace(before, seed=1), (1,), 1)
    assert other.content != once.content


# What it is worth.


@pytest.mark.parametrize("labelled", [False, True])
def test_by_content_far_more_is_kept_than_by_drawing_lots_at_the_same_cost(labelled: bool) -> None:
    pictures, runner = album(), scouted.runner()
    if labelled:
        names = top1_classes(run_plan(runner, pictures, range(len(pictures)), runner.full))
        pictures = album(targets=names.tolist())
    runner, _, after = taught(pictures)
    assert after.content is not None
    assert after.content.rungs == (SCOUT, "full")
    scout, full, found = told(after)[SCOUT], after.full, told(after)["content:0.9"]
    assert scout.quality == pytest.approx(1 - 1 / EVERY, abs=0.01)
    assert scout.gflops < 0.3 * full.gflops
    assert found.quality == 1
    assert found.accuracy == (1 if labelled else None)
    assert found.gflops < 0.6 * full.gflops
    share = (found.gflops - scout.gflops) / (full.gflops - scout.gflops)
    by_lot = (1 - share) * scout.quality + share
    assert found.quality > by_lot + 0.08
    # What is measured is what is served.
    results = run_plan(runner, pictures, range(len(pictures)), Plan.parse("content:0.9", runner.full))
    rungs = [result.chosen for result in results if isinstance(result, Result)]
    scouts = Plan.parse(SCOUT, runner.full)
    assert rungs == [runner.full if is_hard(n) else scouts for n in range(len(pictures))]


def test_each_certainty_is_measured_and_the_best_become_rungs() -> None:
    _, before, after = taught(album())
    assert {m.plan for m in after.measurements} == {SCOUT, "full"} | CONTENT
    assert told(after)[SCOUT] == told(before)[SCOUT]
    rungs = [m.plan for m in after.ladder]
    assert rungs[0] == SCOUT
    assert rungs[-1] == "full"
    assert CONTENT & set(rungs)
    assert after.measurements == choose(after.measurements)
    qualities = [told(after)[f"content:{c}"].quality for c in CERTAINTIES]
    assert qualities == sorted(qualities)
    assert Profile.read(after.text(), "x") == after


def test_its_latency_is_fulls_times_what_it_took_beside_full(monkeypatch: pytest.MonkeyPatch) -> None:
    def clock(_: TorchRunner, chosen: Plan, pixels: Sequence[Any], size: int) -> float:
        looks.append((chosen, size, len(pixels)))
        drift = 1 + (len(looks) - 1) // 10  # each round is slower, for all alike
        return drift * size * (0.001 if chosen.content is None else 0.0004)

    looks: list[tuple[Plan, int, int]] = []
    monkeypatch.setattr(content_profile, "mean_batch_seconds", clock)
    runner, pictures = scouted.runner(), album()
    before = measured(runner, pictures, SCOUT)
    timed = [replace(m, latency_s={1: 0.5, 4: 1.5}) for m in before.measurements]
    timed = [m if m.plan == "full" else replace(m, latency_s={1: 0.1, 4: 0.3}) for m in timed]
    after = taught_by(runner, pictures, replace(before, measurements=choose(timed)), (1, 4), 4)
    assert len(looks) == 4 * 2 * (1 + len(CERTAINTIES))
    assert {count for _, _, count in looks} == {8}
    for text in CONTENT:
        found = told(after)[text].latency_s
        assert set(found) == {1, 4}
        assert found[1] == pytest.approx(0.4 * 0.5)
        assert found[4] == pytest.approx(0.4 * 1.5)


def test_where_full_is_wrong_any_rung_suffices() -> None:
    """The labels of the pictures that the scout is wrong about are such that full is wrong too."""
    runner, pictures = scouted.runner(), album()
    names = top1_classes(run_plan(runner, pictures, range(len(pictures)), runner.full))
    targets = [(int(name) + 2) % 5 if is_hard(n) else int(name) for n, name in enumerate(names)]
    every = list(range(len(pictures)))
    answers = {
        text: top1_classes(run_plan(runner, pictures, every, Plan.parse(text, runner.full)))
        for text in (SCOUT, "full")
    }
    assert not (answers[SCOUT] == answers["full"]).all()
    assert suffices(answers, album(targets=targets), every)[SCOUT].all()
    assert not suffices(answers, pictures, every)[SCOUT].all()


def test_whom_full_gives_no_answer_counts_neither_as_kept_nor_as_lost() -> None:
    answers = {"full": np.array([-1, -1, 3, 3]), "a": np.array([-1, 2, 3, -1])}
    assert suffices(answers, album(4), range(4))["a"].tolist() == [True, True, True, False]
    labelled = album(4, [1, 2, 3, 4])
    assert suffices(answers, labelled, range(4))["a"].tolist() == [True, True, True, True]


@pytest.mark.parametrize("labelled", [False, True])
def test_two_failures_are_no_agreement(labelled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every third picture is one that nobody answers; of the others the scout gets one in four wrong."""
    runner, pictures = scouted.runner(), album(90)
    names = top1_classes(run_plan(runner, pictures, range(90), runner.full)).tolist()
    pictures = album(90, names if labelled else None)
    runner.content = ContentRungs((SCOUT, "full"), ((0.0, 0.0, 0.0),), (99.0,))  # always the scout
    run = runner.run

    def failing(batch: Any, chosen: Plan) -> Any:
        return [RuntimeError("no") if n % 3 == 1 else r for n, r in enumerate(run(batch, chosen))]

    runner.max_batch = 90
    monkeypatch.setattr(runner, "run", failing)
    for m in content_profile._qualities(runner, pictures, range(90)):
        right = [not is_hard(n) for n in range(90) if n % 3 != 1]
        assert m.quality == pytest.approx(np.mean(right))
        assert m.accuracy == (pytest.approx(np.mean(right) * 2 / 3) if labelled else None)


# Where there is nothing to learn.


def test_a_ladder_with_nothing_to_choose_between_stays() -> None:
    runner, pictures = scouted.runner(), album(30)
    before = measured(runner, pictures)
    assert taught_by(runner, pictures, before, (1,), 1) is before
    assert runner.content is None


def test_a_scout_that_fails_teaches_nothing() -> None:
    runner, pictures = scouted.runner(), album(30)
    before = measured(runner, pictures, SCOUT)
    pictures._cached = [scouted.WHITE] * 30
    assert (
        learn(runner, pictures, range(30), [(rung(SCOUT, 0.9, 0.1), rung("full", 1.0, 1.0))], quiet) is None
    )
    assert taught_by(runner, pictures, before, (1,), 1) is before


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_handful_of_pictures_does_no_harm(count: int) -> None:
    runner, pictures = scouted.runner(), album(count)
    before = written(rung(SCOUT, 0.9, 0.1), rung("full", 1.0, 1.0))
    after = taught_by(runner, pictures, before, (1, 4), 1)
    assert (after.content is None) == (count == 1)


def test_where_full_is_wrong_on_the_half_that_measures_nothing_is_told() -> None:
    runner = scouted.runner()
    names = top1_classes(run_plan(runner, album(12), range(12), runner.full))
    every = np.random.default_rng(0).permutation(12)
    targets = np.where(np.isin(np.arange(12), every[:6]), names, (names + 2) % 5).tolist()
    before = written(rung(SCOUT, 0.9, 0.1), rung("full", 1.0, 1.0))
    assert taught_by(runner, album(12, targets), before, (1, 4), 1) is before


def test_progress_rises_to_its_total() -> None:
    steps: list[tuple[int, int]] = []
    runner = scouted.runner()
    offered = [(rung(SCOUT, 0.9, 0.1), rung("evit:0.6", 0.99, 0.5), rung("full", 1.0, 1.0))]
    learn(runner, album(12), range(12), offered, lambda *step: steps.append(step))
    assert steps == [(1, 3), (2, 3), (3, 3)]


# Interrupted.


class Stopped(Exception):
    """Stands for Ctrl-C."""


@pytest.mark.parametrize("after", range(7))
def test_an_interrupted_run_goes_on_behind_what_is_known(
    after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told seven times: two plans have run_plan, the certainties are next, then three rounds, the end."""
    monkeypatch.setattr(profiling, "mean_batch_seconds", clock)
    monkeypatch.setattr(content_profile, "mean_batch_seconds", clock)
    job = ProfilingJob((scouted.runner().full, Plan.parse(SCOUT, scouted.runner().full)), (1, 4), 3)
    whole = measure(unprofiled(scouted.runner()), album(60), job, tmp_path / "whole.json", quiet)
    assert {m.plan for m in whole.measurements} >= CONTENT
    target, told = tmp_path / "p.json", list[tuple[int, int]]()

    def watch(stage: str, _: str, done: int, total: int) -> None:
        if stage == "content":
            told.append((done, total))
            if len(told) > after:
                raise Stopped

    with pytest.raises(Stopped):
        measure(unprofiled(scouted.runner()), album(60), job, target, watch)
    after = 99
    before = json.loads(partial_path(target).read_text())["learnt"]
    stopped_at = told[-1][0]
    assert (before["content"] is None) == (stopped_at < 2 or len(told) == 2)
    assert len(before["rounds"]) == max(0, stopped_at - 3)
    told.clear()
    learns = 0

    def counted(*arguments: Any) -> ContentRungs | None:
        nonlocal learns
        learns += 1
        return learn(*arguments)

    monkeypatch.setattr(content_profile, "learn", counted)
    assert measure(unprofiled(scouted.runner()), album(60), job, target, watch) == whole
    assert learns == (before["content"] is None)
    assert told[-1] == (6, 6)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert len(told) == 7 - (0 if learns else stopped_at)
    assert not partial_path(target).exists()


# From measuring to serving.


def test_what_profile_learns_is_what_a_loaded_model_chooses_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A random model and a sibling of the same weights, beside each other as files."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "tiny.safetensors"
    save(file, tiny())
    save(tmp_path / "tinier.safetensors", replace(tiny(), name="tinier"))
    found = ImageModelLoader().load_unprofiled(
        str(file), LoadOptions("fp32", "cpu", 1), siblings=(str(tmp_path / "tinier.safetensors"),)
    )
    plans = tuple(Plan.parse(text, found.runner.full) for text in ("full", "tinier@64/evit:0.6", "evit:0.6"))
    profile = measure(found, measuring.album(), ProfilingJob(plans, (1,), 1), profile_path(str(file)), quiet)
    rungs = ("tinier@64/evit:0.6", "full")
    content = ContentRungs(rungs, ((1.0, 0.0, 0.0),), (0.0,))
    profile = replace(
        profile,
        content=content,
        measurements=tuple(replace(m, rung=True) for m in profile.measurements),
    )
    profile_path(str(file)).write_text(profile.text())
    runner = ImageModelLoader().load(str(file), LoadOptions("fp32", "cpu", 1))
    assert runner.content == content
    assert set(runner.models) == {"tiny", "tinier"}
    chosen = Plan.parse("content:0.9", runner.full)
    runner.check(chosen)
    media = measuring.album().at(range(6))
    for result in runner.run(runner.stack(media, chosen), chosen):
        assert isinstance(result, Result)
        assert result.chosen in [Plan.parse(text, runner.full) for text in rungs]
    profile_path(str(file)).write_text(
        replace(profile, content=replace(content, rungs=("warp:9", "full"))).text()
    )
    with pytest.raises(SetupError, match="a rung that cannot be run here: there is no token reducer 'warp'"):
        ImageModelLoader().load(str(file), LoadOptions("fp32", "cpu", 1))


def test_measuring_learns_by_content_and_writes_it_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (profiling, content_profile):
        monkeypatch.setattr(module, "mean_batch_seconds", clock)
    runner, stages = scouted.runner(), list[str]()
    pictures, target = album(60), tmp_path / "p.json"
    job = ProfilingJob((runner.full, Plan.parse(SCOUT, runner.full)), (1, 4), 1)
    found = measure(unprofiled(runner, scout="123"), pictures, job, target, lambda s, *_: stages.append(s))
    assert Profile.read(target.read_text(), "x") == found
    assert list(dict.fromkeys(stages)) == ["quality", "latency", "content"]
    assert found.siblings == {"scout": "123"}
    assert found.content is not None
    assert found.content.rungs == (SCOUT, "full")
    assert {m.plan for m in found.measurements} == {SCOUT, "full"} | CONTENT
    for m in found.measurements:
        assert set(m.latency_s) == {1, 4}
