"""Successive halving on real models: its frontier, its budget, and how it resumes."""

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from foveate.core.plan import Plan
from foveate.core.profile import Measurement, Profile
from foveate.models.opaque.checkpoint import OpaqueFamily
from foveate.models.opaque.runner import OpaqueRunner
from foveate.models.own.runner import OwnRunner
from foveate.models.profiling import content_stage, dataset, profile, screening, screening_rules
from foveate.models.profiling.budget import TimeBudget
from foveate.models.profiling.dataset import DecodedDataset
from foveate.models.profiling.profile import measure
from foveate.models.profiling.profile_state import ProfilingJob, ProfilingState, partial_path
from foveate.models.profiling.screening import families, screening_steps, to_measure
from foveate.models.profiling.screening_rules import DroppedPlan
from foveate.models.runners.base import ModelRunner
from foveate.models.runners.image import TorchRunner
from foveate.models.weights import hub
from foveate.models.zoo.heldout import heldout
from tests.support.embedders import embedder
from tests.support.measuring import InterruptAfter, decode, noise_dataset, quiet, tiny, unprofiled
from tests.support.opaque_models import ColourSums, checkpoint
from tests.support.own_models import TwoNetworks

pytestmark = pytest.mark.usefixtures("one_thread")

SIDE, SCENES = 80, 96


@pytest.fixture(scope="module")
def scenes() -> DecodedDataset:
    """Shipped scenes, scaled down so that the test is short, without labels."""
    chosen = dataset.shipped_scenes(heldout()).sample(SCENES, 1)

    def small(data: bytes) -> Any:
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB").resize((SIDE, SIDE)))

    return DecodedDataset(replace(chosen, targets=None, masks=None), small, quiet)


@pytest.fixture(autouse=True)
def untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Latencies that follow the image size, and no choice by content: these have tests of their own."""

    def seconds(_: TorchRunner, chosen: Plan, pixels: Sequence[Any], size: int) -> float:
        return size * chosen.image_size * 1e-3

    monkeypatch.setattr(profile, "mean_batch_seconds", seconds)
    monkeypatch.setattr(content_stage, "learning_steps", lambda *_: iter(()))


def small_runner() -> TorchRunner:
    return TorchRunner(hub.load("vit-xs", image_size=SIDE))


def every_third(runner: TorchRunner) -> tuple[Plan, ...]:
    full, *others = runner.candidates()
    return (full, *others[::3])


def frontier(measurements: Sequence[Measurement]) -> list[Measurement]:
    """The plans that are better than all cheaper ones."""
    best, found = 0.0, []
    for m in sorted(measurements, key=lambda m: (m.gflops, -m.quality)):
        if m.baseline is None and m.quality > best:
            best = m.quality
            found.append(m)
    return found


def best_below(measured: Profile, gflops: float) -> float:
    return max((m.quality for m in measured.measurements if m.gflops <= gflops), default=0.0)


def test_the_frontier_of_halving_is_that_of_the_full_measurement(
    tmp_path: Path, scenes: DecodedDataset
) -> None:
    runner = small_runner()
    plans = every_third(runner)
    assert len(plans) > 50
    halved, whole = (
        measure(
            unprofiled(runner),
            scenes,
            ProfilingJob(plans, (1,), 1, screened=screened),
            tmp_path / f"{screened}.json",
            quiet,
        )
        for screened in (True, False)
    )
    assert len(whole.measurements) == len(plans)
    assert len(halved.measurements) < 0.75 * len(plans)
    losses = []
    for m in frontier(whole.measurements):
        if m.quality >= 0.6:  # a rung keeps at least half of the quality
            # 25%: below it, costs count as similar until they are timed.
            losses.append(m.quality - best_below(halved, 1.25 * m.gflops))
            assert losses[-1] <= 0.04, m
    assert len(losses) > 5 and float(np.mean(losses)) <= 0.01
    search = halved.search
    assert search is not None and search.within_budget
    assert (search.tried, search.dropped) == (len(plans), len(plans) - len(halved.measurements))
    assert sum(family.count for family in search.families) == search.dropped
    assert Profile.read((tmp_path / "True.json").read_text(), "x") == halved


def tiny_job(runner: TorchRunner, budget_s: float | None = None) -> ProfilingJob:
    return ProfilingJob(runner.candidates()[:60], (1,), 1, budget_s=budget_s)


def noise(count: int = 96) -> DecodedDataset:
    items = tuple(str(i).encode() for i in range(count))
    return DecodedDataset(replace(noise_dataset(), items=items), decode, quiet)


@pytest.mark.parametrize("after", [3, 75])
def test_an_interrupted_screening_resumes_and_repeats_nothing(
    after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(screening, "SAVE_INTERVAL_S", 0.0)
    runner, target = TorchRunner(tiny()), tmp_path / "p.json"
    whole = measure(unprofiled(runner), noise(), tiny_job(runner), tmp_path / "whole.json", quiet)
    assert whole.search is not None and whole.search.dropped
    with pytest.raises(KeyboardInterrupt):
        measure(unprofiled(runner), noise(), tiny_job(runner), target, InterruptAfter(after))
    trials = len(json.loads(partial_path(target).read_text())["trials"])
    assert 0 < trials <= 60
    ran: list[str] = []
    run = runner.run

    def counted(batch: Any, chosen: Plan) -> Any:
        ran.append(chosen.relative_to(runner.full))
        return run(batch, chosen)

    monkeypatch.setattr(runner, "run", counted)
    again = measure(unprofiled(runner), noise(), tiny_job(runner), target, quiet)
    assert again == whole
    assert len(ran) < 60 - trials + 3 * len(whole.measurements) + 5


def test_a_tiny_budget_still_gives_a_profile_and_a_larger_one_goes_on(tmp_path: Path) -> None:
    runner, target = TorchRunner(tiny()), tmp_path / "p.json"
    short = measure(unprofiled(runner), noise(), tiny_job(runner, 1e-3), target, quiet)
    assert [m.plan for m in short.measurements] == ["full"], "full is always measured"
    assert short.search is not None and not short.search.within_budget
    assert (short.search.tried, short.search.dropped) == (60, 59)
    assert {family.reason for family in short.search.families} == {screening.NO_TIME}
    assert target.exists() and partial_path(target).exists()
    longer = measure(unprofiled(runner), noise(), tiny_job(runner, 600), target, quiet)
    unlimited = measure(unprofiled(runner), noise(), tiny_job(runner), tmp_path / "other.json", quiet)
    assert longer.search is not None and longer.search.within_budget
    assert [m.plan for m in longer.measurements] == [m.plan for m in unlimited.measurements]
    assert not partial_path(target).exists()


def screened(runner: ModelRunner, texts: Sequence[str], images: DecodedDataset) -> ProfilingState:
    """The state after screening these plans."""
    plans = tuple(Plan.parse(text, runner.full) for text in texts)
    job = ProfilingJob(plans, (1,), 1)
    *_, last = screening_steps(runner, images, job, ProfilingState({}), quiet, TimeBudget(None))
    return last


def test_a_larger_plan_is_screened_on_a_few_images_of_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screening_rules, "MANY_PLANS", 1)
    sides: list[int] = []

    def decoder_of(side: int) -> Callable[[bytes], Any]:
        def enlarged(data: bytes) -> Any:
            sides.append(side)
            return np.asarray(Image.fromarray(decode(data)).resize((side, side)))

        return enlarged

    images = DecodedDataset(noise().dataset, decode, quiet, decoder_of)
    state = screened(TorchRunner(tiny()), ("full", "evit:0.5", "tiny@80/evit:0.2"), images)
    assert state.stages == (32,)
    assert sides == [80] * 32, "the other images are decoded when the plan remains"
    assert len(state.trials["tiny@80/evit:0.2"].scores) == 32


def test_embeddings_are_screened_by_their_nearest_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screening_rules, "MANY_PLANS", 1)
    state = screened(TorchRunner(embedder()), ("full", "evit:0.6", "embedder@32"), noise())
    scores = {plan: float(np.mean(trial.scores)) for plan, trial in state.trials.items()}
    assert scores["full"] == 1 and 0 <= scores["embedder@32"] < 1
    assert {plan for plan, trial in state.trials.items() if len(trial.scores) == 32} == set(scores)


def test_plans_of_unknown_gflops_are_not_screened(monkeypatch: pytest.MonkeyPatch) -> None:
    """They cannot be compared by cost, and a fast plan of a lower quality would be dropped."""
    monkeypatch.setattr(screening_rules, "MANY_PLANS", 1)
    state = screened(OwnRunner(TwoNetworks()), ("full", "small@64", "large@32"), noise())
    assert state.stages == () and not state.trials and not state.dropped


def test_opaque_families_are_screened(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small network scores as the large one does; the wrong one mixes up the colours."""
    monkeypatch.setattr(screening_rules, "MANY_PLANS", 1)
    wrong = checkpoint("wrong")
    assert isinstance(wrong.model, ColourSums)
    wrong.model.mix.weight.copy_(wrong.model.mix.weight.roll(1, 0))
    runner = OpaqueRunner(OpaqueFamily("both", (checkpoint("large"), checkpoint("small"), wrong)))
    state = screened(runner, [plan.relative_to(runner.full) for plan in runner.candidates()], noise())
    dropped = {drop.plan for drop in state.dropped}
    assert "wrong@64" in dropped and not any(plan.startswith("small") for plan in dropped - {"small@64"})


def test_plans_that_the_user_names_are_all_measured(tmp_path: Path) -> None:
    runner = TorchRunner(tiny())
    job = replace(tiny_job(runner), screened=False)
    measured = measure(unprofiled(runner), noise(), job, tmp_path / "p.json", quiet)
    assert len(measured.measurements) == len(job.plans)


def test_dropped_plans_are_listed_by_kind_stage_and_reason() -> None:
    texts = ("evit:0.1", "evit:0.2", "m@32/evit:0.1", "lite@32", "m@32", "exit:0.9", "exit:patience:2")
    drops = [DroppedPlan(text, "first", "why", "full") for text in texts]
    drops.append(DroppedPlan("tome:8", "second", "why"))
    rows = [(row.plans, row.count, row.stage, row.better) for row in families(drops, "m")]
    assert rows == [
        ("evit", 3, "first", "full"),
        ("exit:0.9", 1, "first", "full"),
        ("exit:patience:2", 1, "first", "full"),
        ("lite@32", 1, "first", "full"),
        ("m@32", 1, "first", "full"),
        ("tome:8", 1, "second", ""),
    ]


def test_without_screening_plans_are_measured_in_their_order() -> None:
    runner = TorchRunner(tiny())
    plans = runner.candidates()[:5]
    dropped = (DroppedPlan(plans[2].relative_to(runner.full), "s", "r"),)
    left = to_measure(plans, runner.full, ProfilingState({}, dropped=dropped))
    assert left == [plans[0], plans[1], plans[3], plans[4]]
