"""The partial file: resuming an interrupted run, and files that do not fit the job."""

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from foveate.core.plan import Plan
from foveate.core.profile import Profile
from foveate.models.profiling import profile
from foveate.models.profiling.profile import measure
from foveate.models.profiling.profile_state import partial_path
from foveate.models.runners.image import TorchRunner
from foveate.models.vit.stitch import StitchSpec
from foveate.models.weights.family import Family
from tests.support.measuring import (
    CONFIG,
    IMAGES,
    PLANS,
    InterruptAfter,
    half_right,
    job_measurements,
    noise_images,
    profiling_job,
    quiet,
    tiny,
    unprofiled,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def steady(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace the timer by one that always gives the same times. Returns the list of its calls."""
    calls: list[str] = []

    def seconds(_: TorchRunner, chosen: Plan, pixels: Sequence[Any], size: int) -> float:
        calls.append(chosen.parts)
        return size * chosen.image_size * 1e-3

    monkeypatch.setattr(profile, "mean_batch_seconds", seconds)
    return calls


@pytest.mark.parametrize("after", [0, 1, 4, 9, 13, 16, 24, 28])
def test_an_interrupted_run_resumes_and_ends_with_the_same_profile(
    after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls = steady(monkeypatch)
    caplog.set_level(logging.INFO)
    runner, target = TorchRunner(tiny(), max_batch=8), tmp_path / "p.json"
    whole = measure(unprofiled(runner), noise_images(), profiling_job(runner), tmp_path / "whole.json", quiet)
    per_round = len(calls) // 2
    with pytest.raises(KeyboardInterrupt):
        measure(unprofiled(runner), noise_images(), profiling_job(runner), target, InterruptAfter(after))
    assert not target.exists()
    before = json.loads(partial_path(target).read_text())
    assert (len(before["kept"]) > 0, len(before["rounds"]) > 0) == (after >= 4, after >= 24)

    batch_sizes: list[int] = []
    run = runner.run

    def counted(batch: torch.Tensor, chosen: Plan) -> Any:
        batch_sizes.append(len(batch))
        return run(batch, chosen)

    monkeypatch.setattr(runner, "run", counted)
    calls.clear()
    assert measure(unprofiled(runner), noise_images(), profiling_job(runner), target, quiet) == whole
    assert len(calls) == per_round * (2 - len(before["rounds"]))
    assert sum(batch_sizes) == IMAGES * (len(PLANS) - len(before["kept"]))
    assert "resuming from" in caplog.text
    assert not partial_path(target).exists()


@pytest.mark.parametrize(
    "difference",
    ["weights", "siblings", "stitches", "seed", "pictures", "rounds", "plans", "batch sizes", "precision"],
)
def test_the_state_of_another_job_is_not_used(
    difference: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runner, target = TorchRunner(tiny()), tmp_path / "p.json"
    with pytest.raises(KeyboardInterrupt):
        measure(unprofiled(runner), noise_images(), profiling_job(runner), target, InterruptAfter(12))
    assert len(json.loads(partial_path(target).read_text())["kept"]) > 2
    changed, weights, siblings, labels = profiling_job(runner), "abc", dict[str, str](), None
    match difference:
        case "weights":
            weights = "def"
        case "siblings":
            siblings = {"tinier": "123"}
        case "stitches":
            lighter = tiny(1, replace(CONFIG, width=8, depth=1, heads=1), "router")
            joint = {StitchSpec("tiny", 2, "router", 1): torch.nn.Linear(8, CONFIG.width)}
            runner = TorchRunner(Family(tiny(), (lighter,), joint))
        case "seed":
            changed = profiling_job(runner, seed=1)
        case "pictures":
            labels = half_right(runner)
        case "rounds":
            changed = profiling_job(runner, rounds=1)
        case "plans":
            changed = replace(changed, plans=changed.plans[:3])
        case "batch sizes":
            changed = replace(changed, batch_sizes=(2,))
        case "precision":
            runner = TorchRunner(tiny(), "bf16")
            changed = profiling_job(runner)
    measure(unprofiled(runner, weights, **siblings), noise_images(labels), changed, target, quiet)
    assert re.search(rf"differs in [a-z, ]*{difference}[a-z, ]*: starting from the beginning", caplog.text)
    measured = Profile.read(target.read_text(), "x")
    assert measured.weights == weights
    assert measured.data.labelled == (difference == "pictures")


@pytest.mark.parametrize("junk", ["", "{", "[]", '{"job": 3}', '{"job": {}, "kept": [1]}'])
def test_an_unreadable_partial_file_is_not_used(
    junk: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runner, target = TorchRunner(tiny()), tmp_path / "p.json"
    partial_path(target).write_text(junk)
    measured = measure(unprofiled(runner), noise_images(), profiling_job(runner, rounds=1), target, quiet)
    assert len(job_measurements(measured)) == len(PLANS)
    assert "not readable, so measuring starts from the beginning" in caplog.text
