"""Learning to choose a rung by content: the rungs, the halves of the images, the quality and the cost."""

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
from foveate.core.profile import Measurement, Profile, mark_rungs
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
from tests.support import routed
from tests.support.measuring import noise_images, plan, quiet, tiny, unprofiled, written
from tests.support.routed import EVERY, ROUTER, RecordingDataset, images, is_hard

pytestmark = pytest.mark.usefixtures("one_thread")

CONTENT = {f"content:{certainty}" for certainty in CERTAINTIES}


def measured(runner: TorchRunner, decoded: RecordingDataset, *texts: str) -> Profile:
    """The profile before the choice by content is learned, without latencies."""
    own = runner.full
    every = list(range(len(decoded)))
    targets = decoded.dataset.targets
    full_classes = top1_classes(run_plan(runner, decoded, every, own))
    correct = full_classes if targets is None else np.array(targets)
    measurements = []
    for text in (*texts, "full"):
        results = run_plan(runner, decoded, every, Plan.parse(text, own))
        right = float((top1_classes(results) == correct).mean())
        quality = min(1.0, right / float((full_classes == correct).mean()))
        gflops = float(np.mean([result.gflops for result in results if isinstance(result, Result)]))
        measurements.append(Measurement(text, quality, right, gflops, 5, {}))
    return replace(written(*mark_rungs(measurements)), weights="abc")


def by_plan(profile: Profile) -> dict[str, Measurement]:
    return {m.plan: m for m in profile.measurements}


def fixed_seconds(_: TorchRunner, chosen: Plan, pixels: Sequence[Any], size: int) -> float:
    return size * (
        1.0 if (chosen.variant, chosen.content) == ("tiny", None) else 0.1
    )  # the router's hook runs full, so its real time means nothing


def learn_all(
    runner: TorchRunner, decoded: RecordingDataset, before: Profile, sizes: Sequence[int], rounds: int
) -> Profile:
    """The profile after all steps of learning."""
    steps = list(learning_steps(runner, decoded, before, sizes, rounds, LearnedContent(), quiet))
    return with_content(before, steps[-1] if steps else LearnedContent())


def learned_profile(decoded: RecordingDataset, rounds: int = 1) -> tuple[TorchRunner, Profile, Profile]:
    """A runner, and its profile before and after."""
    runner = routed.runner()
    before = measured(runner, decoded, ROUTER)
    return runner, before, learn_all(runner, decoded, before, (1, 4), rounds)


# The rungs to choose between.


def rung(text: str, quality: float, gflops: float, seconds: float | None = None) -> Measurement:
    return plan(text, quality, gflops, seconds, rung=True)


@pytest.mark.parametrize(
    ("others", "expected"),
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
def test_each_router_is_offered_with_the_cheapest_reliable_rung_and_full(
    others: list[tuple[str, float, float]], expected: list[tuple[str, ...]]
) -> None:
    def offered(*ladder: Measurement) -> list[tuple[str, ...]]:
        return [tuple(m.plan for m in rungs) for rungs in choices(written(*ladder))]

    assert offered(*(rung(*other) for other in others), rung("full", 1.0, 1.0)) == expected
    timed = [rung(text, quality, 5.0, cost) for text, quality, cost in others]
    assert offered(*timed, rung("full", 1.0, 1.0, 1.0)) == expected


def test_only_rungs_are_offered() -> None:
    assert choices(written(plan("a", 0.9, 0.5), rung("full", 1.0, 1.0))) == []


def test_the_router_with_the_lowest_total_cost_is_chosen() -> None:
    runner, decoded = routed.runner(), images()
    dear, cheap = rung(ROUTER, 0.9, 0.8), rung(ROUTER, 0.9, 0.1)
    for order in ([dear, cheap], [cheap, dear]):
        offered = [(router, rung("full", 1.0, 1.0)) for router in order]
        best = learn(runner, decoded, range(len(decoded)), offered, quiet)
        assert best is not None
        assert best.rungs == (ROUTER, "full")
    useless = (rung("evit:0.1", 0.9, 0.9), rung("full", 1.0, 1.0))
    best = learn(runner, decoded, range(len(decoded)), [useless, (cheap, useless[1])], quiet)
    assert best is not None
    assert best.rungs[0] == ROUTER


# The halves of the images.


def test_no_image_is_used_for_both_learning_and_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded, learned = images(61), list[int]()

    def recorded(
        runner: TorchRunner, dataset: RecordingDataset, indices: Sequence[int], *rest: Any
    ) -> ContentRungs | None:
        dataset.requested.clear()
        content = learn(runner, dataset, indices, *rest)
        learned.extend(dataset.requested)
        dataset.requested.clear()
        return content

    monkeypatch.setattr(content_profile, "learn", recorded)
    learned_profile(decoded, rounds=3)
    first, second = set(learned), set(decoded.requested)
    assert not first & second
    assert first | second == set(range(61))
    assert abs(len(first) - len(second)) == 1
    assert first != set(range(len(first))), "the halves are random, because a folder is sorted by class"


def test_the_seed_decides_the_halves() -> None:
    runner, decoded = routed.runner(), images(60)
    before = measured(runner, decoded, ROUTER)
    once, again = (learn_all(runner, decoded, before, (1,), 1) for _ in range(2))
    assert once == again
    other = learn_all(runner, decoded, replace(before, seed=1), (1,), 1)
    assert other.content != once.content


# The quality and the cost.


@pytest.mark.parametrize("labelled", [False, True])
def test_content_beats_a_random_choice_of_the_same_cost(labelled: bool) -> None:
    decoded, runner = images(), routed.runner()
    if labelled:
        names = top1_classes(run_plan(runner, decoded, range(len(decoded)), runner.full))
        decoded = images(targets=names.tolist())
    runner, _, after = learned_profile(decoded)
    assert after.content is not None
    assert after.content.rungs == (ROUTER, "full")
    router, full, chosen = by_plan(after)[ROUTER], after.full, by_plan(after)["content:0.9"]
    assert router.quality == pytest.approx(1 - 1 / EVERY, abs=0.01)
    assert router.gflops < 0.3 * full.gflops
    assert chosen.quality == 1
    assert chosen.accuracy == (1 if labelled else None)
    assert chosen.gflops < 0.6 * full.gflops
    share = (chosen.gflops - router.gflops) / (full.gflops - router.gflops)
    by_chance = (1 - share) * router.quality + share
    assert chosen.quality > by_chance + 0.08
    # A served request gets the rungs that were measured.
    results = run_plan(runner, decoded, range(len(decoded)), Plan.parse("content:0.9", runner.full))
    rungs = [result.chosen for result in results if isinstance(result, Result)]
    routers = Plan.parse(ROUTER, runner.full)
    assert rungs == [runner.full if is_hard(n) else routers for n in range(len(decoded))]


def test_every_certainty_is_measured_and_the_best_become_rungs() -> None:
    _, before, after = learned_profile(images())
    assert {m.plan for m in after.measurements} == {ROUTER, "full"} | CONTENT
    assert by_plan(after)[ROUTER] == by_plan(before)[ROUTER]
    rungs = [m.plan for m in after.ladder]
    assert rungs[0] == ROUTER
    assert rungs[-1] == "full"
    assert CONTENT & set(rungs)
    assert after.measurements == mark_rungs(after.measurements)
    qualities = [by_plan(after)[f"content:{c}"].quality for c in CERTAINTIES]
    assert qualities == sorted(qualities)
    assert Profile.read(after.text(), "x") == after


def test_its_latency_is_its_share_of_full_in_each_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def drifting_seconds(_: TorchRunner, chosen: Plan, pixels: Sequence[Any], size: int) -> float:
        calls.append((chosen, size, len(pixels)))
        drift = 1 + (len(calls) - 1) // 10  # each round is slower, for all plans alike
        return drift * size * (0.001 if chosen.content is None else 0.0004)

    calls: list[tuple[Plan, int, int]] = []
    monkeypatch.setattr(content_profile, "mean_batch_seconds", drifting_seconds)
    runner, decoded = routed.runner(), images()
    before = measured(runner, decoded, ROUTER)
    timed = [replace(m, latency_s={1: 0.5, 4: 1.5}) for m in before.measurements]
    timed = [m if m.plan == "full" else replace(m, latency_s={1: 0.1, 4: 0.3}) for m in timed]
    after = learn_all(runner, decoded, replace(before, measurements=mark_rungs(timed)), (1, 4), 4)
    assert len(calls) == 4 * 2 * (1 + len(CERTAINTIES))
    assert {count for _, _, count in calls} == {8}
    for text in CONTENT:
        latency = by_plan(after)[text].latency_s
        assert set(latency) == {1, 4}
        assert latency[1] == pytest.approx(0.4 * 0.5)
        assert latency[4] == pytest.approx(0.4 * 1.5)


def test_any_rung_suffices_for_an_image_that_full_gets_wrong() -> None:
    """With these labels, full is wrong on the images on which the router is wrong."""
    runner, decoded = routed.runner(), images()
    names = top1_classes(run_plan(runner, decoded, range(len(decoded)), runner.full))
    targets = [(int(name) + 2) % 5 if is_hard(n) else int(name) for n, name in enumerate(names)]
    every = list(range(len(decoded)))
    answers = {
        text: top1_classes(run_plan(runner, decoded, every, Plan.parse(text, runner.full)))
        for text in (ROUTER, "full")
    }
    assert not (answers[ROUTER] == answers["full"]).all()
    assert suffices(answers, images(targets=targets), every)[ROUTER].all()
    assert not suffices(answers, decoded, every)[ROUTER].all()


def test_an_image_that_full_fails_on_counts_as_sufficient() -> None:
    answers = {"full": np.array([-1, -1, 3, 3]), "a": np.array([-1, 2, 3, -1])}
    assert suffices(answers, images(4), range(4))["a"].tolist() == [True, True, True, False]
    labelled = images(4, [1, 2, 3, 4])
    assert suffices(answers, labelled, range(4))["a"].tolist() == [True, True, True, True]


@pytest.mark.parametrize("labelled", [False, True])
def test_two_failures_do_not_agree(labelled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every plan fails on every third image; of the others, the router gets one in four wrong."""
    runner, decoded = routed.runner(), images(90)
    names = top1_classes(run_plan(runner, decoded, range(90), runner.full)).tolist()
    decoded = images(90, names if labelled else None)
    runner.content = ContentRungs((ROUTER, "full"), ((0.0, 0.0, 0.0),), (99.0,))  # always the router
    run = runner.run

    def failing(batch: Any, chosen: Plan) -> Any:
        return [RuntimeError("no") if n % 3 == 1 else r for n, r in enumerate(run(batch, chosen))]

    runner.max_batch = 90
    monkeypatch.setattr(runner, "run", failing)
    for m in content_profile._qualities(runner, decoded, range(90)):
        right = [not is_hard(n) for n in range(90) if n % 3 != 1]
        assert m.quality == pytest.approx(np.mean(right))
        assert m.accuracy == (pytest.approx(np.mean(right) * 2 / 3) if labelled else None)


# Nothing to learn.


def test_a_ladder_without_a_router_is_unchanged() -> None:
    runner, decoded = routed.runner(), images(30)
    before = measured(runner, decoded)
    assert learn_all(runner, decoded, before, (1,), 1) is before
    assert runner.content is None


def test_a_router_that_fails_on_an_image_is_not_used() -> None:
    runner, decoded = routed.runner(), images(30)
    before = measured(runner, decoded, ROUTER)
    decoded._cached = [routed.WHITE] * 30
    assert (
        learn(runner, decoded, range(30), [(rung(ROUTER, 0.9, 0.1), rung("full", 1.0, 1.0))], quiet) is None
    )
    assert learn_all(runner, decoded, before, (1,), 1) is before


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_few_images_are_enough_to_run(count: int) -> None:
    runner, decoded = routed.runner(), images(count)
    before = written(rung(ROUTER, 0.9, 0.1), rung("full", 1.0, 1.0))
    after = learn_all(runner, decoded, before, (1, 4), 1)
    assert (after.content is None) == (count == 1)


def test_nothing_is_measured_if_full_is_always_wrong_on_the_second_half() -> None:
    runner = routed.runner()
    names = top1_classes(run_plan(runner, images(12), range(12), runner.full))
    every = np.random.default_rng(0).permutation(12)
    targets = np.where(np.isin(np.arange(12), every[:6]), names, (names + 2) % 5).tolist()
    before = written(rung(ROUTER, 0.9, 0.1), rung("full", 1.0, 1.0))
    assert learn_all(runner, images(12, targets), before, (1, 4), 1) is before


def test_progress_reaches_its_total() -> None:
    steps: list[tuple[int, int]] = []
    runner = routed.runner()
    offered = [(rung(ROUTER, 0.9, 0.1), rung("evit:0.6", 0.99, 0.5), rung("full", 1.0, 1.0))]
    learn(runner, images(12), range(12), offered, lambda *step: steps.append(step))
    assert steps == [(1, 3), (2, 3), (3, 3)]


# Interruptions.


class Interrupted(Exception):
    """Raised by the test to interrupt a run."""


@pytest.mark.parametrize("after", range(7))
def test_an_interrupted_run_resumes_after_the_last_finished_step(
    after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There are seven reports: two plans, the certainties, three rounds, the end."""
    monkeypatch.setattr(profiling, "mean_batch_seconds", fixed_seconds)
    monkeypatch.setattr(content_profile, "mean_batch_seconds", fixed_seconds)
    job = ProfilingJob((routed.runner().full, Plan.parse(ROUTER, routed.runner().full)), (1, 4), 3)
    whole = measure(unprofiled(routed.runner()), images(60), job, tmp_path / "whole.json", quiet)
    assert {m.plan for m in whole.measurements} >= CONTENT
    target, reports = tmp_path / "p.json", list[tuple[int, int]]()

    def report(stage: str, _: str, done: int, total: int) -> None:
        if stage == "content":
            reports.append((done, total))
            if len(reports) > after:
                raise Interrupted

    with pytest.raises(Interrupted):
        measure(unprofiled(routed.runner()), images(60), job, target, report)
    after = 99
    before = json.loads(partial_path(target).read_text())["learnt"]
    stopped_at = reports[-1][0]
    assert (before["content"] is None) == (stopped_at < 2 or len(reports) == 2)
    assert len(before["rounds"]) == max(0, stopped_at - 3)
    reports.clear()
    learns = 0

    def counted(*arguments: Any) -> ContentRungs | None:
        nonlocal learns
        learns += 1
        return learn(*arguments)

    monkeypatch.setattr(content_profile, "learn", counted)
    assert measure(unprofiled(routed.runner()), images(60), job, target, report) == whole
    assert learns == (before["content"] is None)
    assert reports[-1] == (6, 6)
    assert [done for done, _ in reports] == sorted(done for done, _ in reports)
    assert len(reports) == 7 - (0 if learns else stopped_at)
    assert not partial_path(target).exists()


# From profiling to serving.


def test_a_loaded_model_chooses_by_the_content_of_its_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A random model and a sibling of the same weights, as files in one folder."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "tiny.safetensors"
    save(file, tiny())
    save(tmp_path / "tinier.safetensors", replace(tiny(), name="tinier"))
    loaded = ImageModelLoader().load_unprofiled(
        str(file), LoadOptions("fp32", "cpu", 1), siblings=(str(tmp_path / "tinier.safetensors"),)
    )
    plans = tuple(Plan.parse(text, loaded.runner.full) for text in ("full", "tinier@64/evit:0.6", "evit:0.6"))
    profile = measure(loaded, noise_images(), ProfilingJob(plans, (1,), 1), profile_path(str(file)), quiet)
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
    media = noise_images().at(range(6))
    for result in runner.run(runner.stack(media, chosen), chosen):
        assert isinstance(result, Result)
        assert result.chosen in [Plan.parse(text, runner.full) for text in rungs]
    profile_path(str(file)).write_text(
        replace(profile, content=replace(content, rungs=("warp:9", "full"))).text()
    )
    with pytest.raises(SetupError, match="a rung that cannot be run here: there is no token reducer 'warp'"):
        ImageModelLoader().load(str(file), LoadOptions("fp32", "cpu", 1))


def test_measuring_writes_the_choice_by_content_into_the_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (profiling, content_profile):
        monkeypatch.setattr(module, "mean_batch_seconds", fixed_seconds)
    runner, stages = routed.runner(), list[str]()
    decoded, target = images(60), tmp_path / "p.json"
    job = ProfilingJob((runner.full, Plan.parse(ROUTER, runner.full)), (1, 4), 1)
    measured = measure(unprofiled(runner, router="123"), decoded, job, target, lambda s, *_: stages.append(s))
    assert Profile.read(target.read_text(), "x") == measured
    assert list(dict.fromkeys(stages)) == ["quality", "latency", "content"]
    assert measured.siblings == {"router": "123"}
    assert measured.content is not None
    assert measured.content.rungs == (ROUTER, "full")
    assert {m.plan for m in measured.measurements} == {ROUTER, "full"} | CONTENT
    for m in measured.measurements:
        assert set(m.latency_s) == {1, 4}
