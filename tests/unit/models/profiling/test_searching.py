"""Searching the schedules of a profile: the shares, the images, and resuming."""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foveate.core.errors import BadPlan, SetupError
from foveate.core.plan import Plan
from foveate.core.profile import Profile
from foveate.models.profiling import searching
from foveate.models.profiling.dataset import DecodedDataset
from foveate.models.profiling.profile import measure
from foveate.models.profiling.profile_state import ProfilingJob, partial_path
from foveate.models.profiling.searching import (
    find_schedule,
    parse_shares,
    search_batch,
    set_uniform_schedules,
    use_schedules,
)
from foveate.models.reduction.diffrate import full_gmacs, uniform_schedule
from foveate.models.runners.image import TorchRunner
from tests.support.measuring import (
    CONFIG,
    IMAGES,
    decode,
    noise_dataset,
    noise_images,
    quiet,
    tiny,
    unprofiled,
)

pytestmark = pytest.mark.usefixtures("one_thread")

LABELS = [number % 5 for number in range(IMAGES)]


@pytest.mark.parametrize(
    ("text", "shares"),
    [(None, ()), ("", ()), (",", ()), ("0.7", (0.7,)), (" .5, 0.70,0.7,", (0.5, 0.7)), ("1e-1", (0.1,))],
)
def test_shares_are_numbers_separated_by_commas(text: str | None, shares: tuple[float, ...]) -> None:
    assert parse_shares(text) == shares


@pytest.mark.parametrize("text", ["x", "0.7;0.5", "0", "1", "0.99999999", "-0.5", "nan", "inf", "0.7,2"])
def test_invalid_shares_are_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(SetupError, match=r"as in 0\.7,0\.5; not ") as refused:
        parse_shares(text)
    assert "\n" not in refused.value.detail


def test_a_plan_uses_the_uniform_schedule_until_another_is_set() -> None:
    runner = TorchRunner(tiny())
    set_uniform_schedules(runner, (0.7, 0.5))
    model, half = runner.models["tiny"], Plan.parse("diffrate:0.5", runner.full)
    assert model.schedules == {"0.7": uniform_schedule(CONFIG, 0.7), "0.5": uniform_schedule(CONFIG, 0.5)}
    before = runner.resolve(half)
    use_schedules(runner, {"0.5": uniform_schedule(CONFIG, 0.6)})
    assert runner.resolve(half) != before
    assert runner.resolve(half) == runner.resolve(Plan.parse("diffrate:0.6", runner.full))


def test_a_share_out_of_reach_is_refused_before_the_search() -> None:
    with pytest.raises(BadPlan, match=r"below .* of its full compute"):
        set_uniform_schedules(TorchRunner(tiny()), (0.01,))
    without = TorchRunner(tiny(config=replace(CONFIG, class_token=False, pool="avg")))
    with pytest.raises(BadPlan, match="this model has none"):
        set_uniform_schedules(without, (0.7,))


def test_the_search_uses_the_half_from_which_content_is_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    runner, decoded, used = TorchRunner(tiny()), noise_images(), list[int]()
    at = decoded.at

    def recorded(indices: Iterable[int]) -> Any:
        used.extend(indices := list(indices))
        return at(indices)

    monkeypatch.setattr(decoded, "at", recorded)
    steps: list[int] = []
    schedule = find_schedule(runner, decoded, 0.6, 3, steps.append)
    assert steps == list(range(1, searching.STEPS + 1))
    assert sorted(used) == sorted(np.random.default_rng(3).permutation(IMAGES)[: IMAGES // 2])
    use_schedules(runner, {"0.6": schedule})
    chosen = Plan.parse("diffrate:0.6", runner.full)
    (result, *_) = runner.run(runner.stack(at([0]), chosen), chosen)
    assert not isinstance(result, Exception)
    assert result.gflops <= 0.61 * full_gmacs(CONFIG)  # the share leaves out the reducer's own work
    assert find_schedule(runner, decoded, 0.6, 3, quiet) == schedule


def test_a_batch_is_normalised_and_has_its_classes() -> None:
    runner = TorchRunner(tiny(), "bf16")
    images, classes = search_batch(runner, noise_images(LABELS), [3, 9])
    assert (images.shape, images.dtype) == ((2, 3, 64, 64), runner.dtype)
    assert classes is not None
    assert (classes.tolist(), classes.device) == ([3, 4], images.device)
    assert search_batch(runner, noise_images(), [3])[1] is None


def test_one_image_is_enough() -> None:
    one = DecodedDataset(noise_dataset().subset([0]), decode, quiet)
    assert len(find_schedule(TorchRunner(tiny()), one, 0.6, 0, quiet)) == CONFIG.depth


# As a stage of measuring.


def job(runner: TorchRunner, *shares: float) -> ProfilingJob:
    texts = ("full", *(f"diffrate:{share:g}" for share in shares))
    return ProfilingJob(tuple(Plan.parse(text, runner.full) for text in texts), (1, 3), 1, 0, shares)


def prepared(*shares: float) -> TorchRunner:
    runner = TorchRunner(tiny())
    set_uniform_schedules(runner, shares)
    return runner


def without_latencies(profile: Profile) -> list[tuple[str, float, float]]:
    return [(m.plan, m.quality, m.gflops) for m in profile.measurements if "content" not in m.plan]


@pytest.mark.parametrize("after", [0, searching.STEPS + 9, 2 * searching.STEPS])
def test_schedules_are_saved_and_an_interrupted_search_resumes(after: int, tmp_path: Path) -> None:
    runner, target, reports = prepared(0.7, 0.5), tmp_path / "p.json", list[tuple[str, int, int]]()
    whole = measure(unprofiled(runner), noise_images(), job(runner, 0.7, 0.5), tmp_path / "whole.json", quiet)
    assert set(whole.schedules) == {"0.7", "0.5"}
    assert runner.models["tiny"].schedules == whole.schedules
    assert Profile.read((tmp_path / "whole.json").read_text(), "x") == whole

    def report(stage: str, _: str, done: int, total: int) -> None:
        reports.append((stage, done, total))
        if len(reports) == after + 1:
            raise KeyboardInterrupt

    again = prepared(0.7, 0.5)
    with pytest.raises(KeyboardInterrupt):
        measure(unprofiled(again), noise_images(), job(again, 0.7, 0.5), target, report)
    known = len(json.loads(partial_path(target).read_text())["schedules"])
    assert known == after // searching.STEPS
    reports[:], after = [("", 0, 0)] * 999, 0
    again = prepared(0.7, 0.5)
    measured = measure(unprofiled(again), noise_images(), job(again, 0.7, 0.5), target, report)
    searched = [done for stage, done, _ in reports if stage == "schedules"]
    assert searched == list(range(known * searching.STEPS + 1, 2 * searching.STEPS + 1))
    assert measured.schedules == whole.schedules
    assert without_latencies(measured) == without_latencies(whole)


def test_the_state_of_a_run_with_other_schedules_is_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The plans have the same names with and without a search."""
    runner, target = prepared(0.7), tmp_path / "p.json"
    searched = job(runner, 0.7)

    def stop(stage: str, *_: object) -> None:
        if stage == "latency":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(unprofiled(runner), noise_images(), searched, target, stop)
    plain = TorchRunner(tiny())
    measured = measure(unprofiled(plain), noise_images(), replace(searched, shares=()), target, quiet)
    assert "differs in schedules: starting from the beginning" in caplog.text
    assert measured.schedules == {}
