"""Schedules that a profile searches for: which shares, on which pictures, and from where it goes on."""

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
from foveate.models.reduction.diffrate import full_gmacs, uniform
from foveate.models.runners.image import TorchRunner
from tests.support.measuring import GEOMETRY, PICTURES, album, decode, quiet, shown, tiny, unprofiled

pytestmark = pytest.mark.usefixtures("one_thread")

LABELS = [number % 5 for number in range(PICTURES)]


@pytest.mark.parametrize(
    ("text", "shares"),
    [(None, ()), ("", ()), (",", ()), ("0.7", (0.7,)), (" .5, 0.70,0.7,", (0.5, 0.7)), ("1e-1", (0.1,))],
)
def test_shares_are_numbers_with_commas_between(text: str | None, shares: tuple[float, ...]) -> None:
    assert parse_shares(text) == shares


@pytest.mark.parametrize("text", ["x", "0.7;0.5", "0", "1", "0.99999999", "-0.5", "nan", "inf", "0.7,2"])
def test_other_shares_are_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(SetupError, match=r"as in 0\.7,0\.5; not ") as refused:
        parse_shares(text)
    assert "\n" not in refused.value.detail


def test_a_plan_of_a_share_goes_by_the_even_schedule_until_one_is_found() -> None:
    runner = TorchRunner(tiny())
    set_uniform_schedules(runner, (0.7, 0.5))
    model, half = runner.models["tiny"], Plan.parse("diffrate:0.5", runner.full)
    assert model.schedules == {"0.7": uniform(GEOMETRY, 0.7), "0.5": uniform(GEOMETRY, 0.5)}
    before = runner.steps(half)
    use_schedules(runner, {"0.5": uniform(GEOMETRY, 0.6)})
    assert runner.steps(half) != before
    assert runner.steps(half) == runner.steps(Plan.parse("diffrate:0.6", runner.full))


def test_a_share_that_cannot_be_had_is_known_before_anything_is_searched() -> None:
    with pytest.raises(BadPlan, match=r"below .* of its full compute"):
        set_uniform_schedules(TorchRunner(tiny()), (0.01,))
    without = TorchRunner(tiny(geometry=replace(GEOMETRY, class_token=False, pool="avg")))
    with pytest.raises(BadPlan, match="this model has none"):
        set_uniform_schedules(without, (0.7,))


def test_the_search_sees_the_half_that_content_is_learnt_from(monkeypatch: pytest.MonkeyPatch) -> None:
    runner, pictures, seen = TorchRunner(tiny()), album(), list[int]()
    at = pictures.at

    def watched(indices: Iterable[int]) -> Any:
        seen.extend(indices := list(indices))
        return at(indices)

    monkeypatch.setattr(pictures, "at", watched)
    steps: list[int] = []
    found = find_schedule(runner, pictures, 0.6, 3, steps.append)
    assert steps == list(range(1, searching.STEPS + 1))
    assert sorted(seen) == sorted(np.random.default_rng(3).permutation(PICTURES)[: PICTURES // 2])
    use_schedules(runner, {"0.6": found})
    chosen = Plan.parse("diffrate:0.6", runner.full)
    (result, *_) = runner.run(runner.stack(at([0]), chosen), chosen)
    assert not isinstance(result, Exception)
    assert result.gflops <= 0.6 * full_gmacs(GEOMETRY)
    assert find_schedule(runner, pictures, 0.6, 3, quiet) == found


def test_a_batch_is_what_the_model_wants_with_classes_where_they_are_known() -> None:
    runner = TorchRunner(tiny(), "bf16")
    images, classes = search_batch(runner, album(LABELS), [3, 9])
    assert (images.shape, images.dtype) == ((2, 3, 64, 64), runner.dtype)
    assert classes is not None
    assert (classes.tolist(), classes.device) == ([3, 4], images.device)
    assert search_batch(runner, album(), [3])[1] is None


def test_one_picture_is_enough() -> None:
    one = DecodedDataset(shown().subset([0]), decode, quiet)
    assert len(find_schedule(TorchRunner(tiny()), one, 0.6, 0, quiet)) == GEOMETRY.depth


# As a part of measuring.


def job(runner: TorchRunner, *shares: float) -> ProfilingJob:
    texts = ("full", *(f"diffrate:{share:g}" for share in shares))
    return ProfilingJob(tuple(Plan.parse(text, runner.full) for text in texts), (1, 3), 1, 0, shares)


def prepared(*shares: float) -> TorchRunner:
    runner = TorchRunner(tiny())
    set_uniform_schedules(runner, shares)
    return runner


def same(found: Profile) -> list[tuple[str, float, float]]:
    return [(m.plan, m.quality, m.gflops) for m in found.measurements if "content" not in m.plan]


@pytest.mark.parametrize("after", [0, searching.STEPS + 9, 2 * searching.STEPS])
def test_schedules_are_written_and_an_interrupted_search_goes_on(after: int, tmp_path: Path) -> None:
    runner, target, told = prepared(0.7, 0.5), tmp_path / "p.json", list[tuple[str, int, int]]()
    whole = measure(unprofiled(runner), album(), job(runner, 0.7, 0.5), tmp_path / "whole.json", quiet)
    assert set(whole.schedules) == {"0.7", "0.5"}
    assert runner.models["tiny"].schedules == whole.schedules
    assert Profile.read((tmp_path / "whole.json").read_text(), "x") == whole

    def watch(stage: str, _: str, done: int, total: int) -> None:
        told.append((stage, done, total))
        if len(told) == after + 1:
            raise KeyboardInterrupt

    again = prepared(0.7, 0.5)
    with pytest.raises(KeyboardInterrupt):
        measure(unprofiled(again), album(), job(again, 0.7, 0.5), target, watch)
    known = len(json.loads(partial_path(target).read_text())["schedules"])
    assert known == after // searching.STEPS
    told[:], after = [("", 0, 0)] * 999, 0
    again = prepared(0.7, 0.5)
    found = measure(unprofiled(again), album(), job(again, 0.7, 0.5), target, watch)
    searched = [done for stage, done, _ in told if stage == "schedules"]
    assert searched == list(range(known * searching.STEPS + 1, 2 * searching.STEPS + 1))
    assert found.schedules == whole.schedules
    assert same(found) == same(whole)


def test_what_was_measured_by_other_schedules_is_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The plans go by the same names, with a search or without."""
    runner, target = prepared(0.7), tmp_path / "p.json"
    asked = job(runner, 0.7)

    def stop(stage: str, *_: object) -> None:
        if stage == "latency":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(unprofiled(runner), album(), asked, target, stop)
    plain = TorchRunner(tiny())
    found = measure(unprofiled(plain), album(), replace(asked, shares=()), target, quiet)
    assert "differs in schedules: starting anew" in caplog.text
    assert found.schedules == {}
