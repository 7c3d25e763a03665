"""Measuring a profile: quality, latency in rounds, progress, and the errors before anything is measured."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foveate.core.errors import SetupError
from foveate.core.plan import Plan
from foveate.core.profile import Profile, ProfilingSet, worth_timing
from foveate.models.loading.loader import UnprofiledModel
from foveate.models.loading.machine import current_setting
from foveate.models.profiling import profile, timing
from foveate.models.profiling.dataset import DecodedDataset
from foveate.models.profiling.profile import measure
from foveate.models.profiling.profile_state import ProfilingJob, partial_path
from foveate.models.runners.image import TorchRunner
from tests.support.embedders import embedded, embedder
from tests.support.measuring import (
    IMAGES,
    PLANS,
    InterruptAfter,
    decode,
    half_right,
    job_measurements,
    noise_dataset,
    noise_images,
    predicted_classes,
    profiling_job,
    quiet,
    single_results,
    tiny,
    unprofiled,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def measured_profile(
    runner: TorchRunner,
    target: Path,
    report: Callable[..., None] = quiet,
    targets: Sequence[int] | None = None,
    rounds: int = 2,
) -> Profile:
    """Measure PLANS on the noise images."""
    return measure(unprofiled(runner), noise_images(targets), profiling_job(runner, rounds), target, report)


def agreement(classes: Sequence[int], expected: Sequence[int]) -> float:
    return float(np.mean([actual == other for actual, other in zip(classes, expected, strict=True)]))


@pytest.mark.parametrize("labelled", [True, False])
def test_quality_is_accuracy_relative_to_full_or_agreement_with_full(labelled: bool, tmp_path: Path) -> None:
    runner = TorchRunner(tiny())
    targets = half_right(runner) if labelled else None
    measured = measured_profile(runner, tmp_path / "p.json", targets=targets)
    assert measured.data == ProfilingSet("noise", IMAGES, labelled)
    assert {m.plan for m in job_measurements(measured)} == set(PLANS)
    expected = targets or predicted_classes(runner, "full")
    by_plan = {m.plan: m for m in measured.measurements}
    right = {
        p: np.mean([a == b for a, b in zip(predicted_classes(runner, p), expected, strict=True)])
        for p in PLANS
    }
    assert right["evit:0.2"] not in (right["full"], 0)
    for text in PLANS:
        assert by_plan[text].quality == pytest.approx(min(1, right[text] / right["full"]), abs=1e-6)
        assert by_plan[text].accuracy == (pytest.approx(right[text], abs=1e-6) if labelled else None)
        results = single_results(runner, text)
        assert by_plan[text].gflops == pytest.approx(np.mean([r.gflops for r in results]), abs=1e-6)
        assert by_plan[text].tokens == round(np.mean([r.tokens for r in results]))


def test_the_file_holds_the_profile_and_the_partial_file_is_gone(tmp_path: Path) -> None:
    runner, target = TorchRunner(tiny()), tmp_path / "new" / "p.json"
    measured = measured_profile(runner, target)
    assert Profile.read(target.read_text(), "x") == measured
    assert (measured.model, measured.weights, measured.seed) == ("tiny", "abc", 0)
    assert measured.setting == current_setting("cpu", "fp32")
    assert [path.name for path in target.parent.iterdir()] == ["p.json"]
    assert measured.ladder[-1].plan == "full"
    timed = [m for m in job_measurements(measured) if m.latency_s]
    assert {m.plan for m in timed} == {m.plan for m in worth_timing(job_measurements(measured))}
    assert all(set(m.latency_s) == {1, 3} for m in timed)


def test_a_round_gives_every_plan_the_same_images_and_each_round_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = TorchRunner(tiny())
    by_round: dict[tuple[int, int], list[tuple[str, float]]] = {}
    number = -1

    def spy(_: TorchRunner, chosen: Plan, pixels: Sequence[Any], size: int) -> float:
        if len(pixels) > size:  # not the warm-up
            key = (number, size)
            by_round.setdefault(key, []).append((chosen.parts, float(np.mean(np.stack(pixels)))))
        return {"full": 3.0, "evit:0.6": 2.0}.get(chosen.relative_to(runner.full), 1.0) * (number + 1)

    drawn = profile._round_images

    def counted(*arguments: Any) -> Any:
        nonlocal number
        number = arguments[-1]
        return drawn(*arguments)

    monkeypatch.setattr(profile, "mean_batch_seconds", spy)
    monkeypatch.setattr(profile, "_round_images", counted)
    monkeypatch.setattr(profile, "worth_timing", tuple)
    measured = measured_profile(runner, tmp_path / "p.json", rounds=3)
    assert set(by_round) == {(r, s) for r in range(3) for s in (1, 3)}
    assert all(
        len(calls) == len(PLANS) and len({mean for _, mean in calls}) == 1 for calls in by_round.values()
    )
    assert len({calls[0][1] for calls in by_round.values()}) == 3
    assert len({tuple(steps for steps, _ in calls) for calls in by_round.values()}) > 1
    # The median of rounds whose times are 1, 2 and 3 times as long.
    assert {m.plan: m.latency_s[3] for m in measured.measurements if m.plan in ("full", "evit:0.6")} == {
        "full": 6.0,
        "evit:0.6": 4.0,
    }


def test_the_timer_measures_whole_batches_after_one_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    runner, sizes = TorchRunner(tiny()), []
    run = runner.run

    def counted(batch: torch.Tensor, chosen: Plan) -> Any:
        sizes.append(len(batch))
        return run(batch, chosen)

    monkeypatch.setattr(runner, "run", counted)
    assert 0 < timing.mean_batch_seconds(runner, runner.full, [decode(b"1")] * 16, 5) < 10
    assert sizes == [5, 5, 5, 5], "one warm-up batch and three timed ones"


def test_an_unwritable_path_fails_before_anything_is_measured(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    runner = TorchRunner(tiny())
    with pytest.raises(SetupError, match="cannot write"):
        measure(
            unprofiled(runner),
            noise_images(),
            profiling_job(runner),
            tmp_path / "file" / "p.json",
            InterruptAfter(0),
        )
    assert not caplog.text, "there was no partial file to warn of"


def test_a_folder_as_target_fails_before_anything_is_measured(tmp_path: Path) -> None:
    runner = TorchRunner(tiny())
    with pytest.raises(SetupError, match="it is a folder"):
        measured_profile(runner, tmp_path, InterruptAfter(0))
    assert not partial_path(tmp_path).exists()


def test_labels_with_which_full_is_always_wrong_are_refused(tmp_path: Path) -> None:
    runner = TorchRunner(tiny())
    wrong = [(index + 1) % 5 for index in predicted_classes(runner, "full")]
    with pytest.raises(SetupError, match="full gives every image a wrong class"):
        measured_profile(runner, tmp_path / "p.json", targets=wrong)


def test_a_failed_answer_counts_as_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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

    agreed = np.mean(
        [
            a == b
            for a, b in zip(
                predicted_classes(runner, "evit:0.6"), predicted_classes(runner, "full"), strict=True
            )
        ]
    )
    monkeypatch.setattr(runner, "run", failing)
    measured = measured_profile(runner, tmp_path / "p.json", rounds=1)
    qualities = {m.plan: m.quality for m in measured.measurements}
    assert qualities["full"] == 1
    assert qualities["evit:0.6"] < agreed
    assert qualities["evit:0.6"] <= 0.75
    monkeypatch.setattr(runner, "run", failing_at_full)
    measured = measured_profile(runner, tmp_path / "p.json", rounds=1)
    monkeypatch.setattr(runner, "run", run)
    assert measured.full.quality == 1
    pairs = list(zip(predicted_classes(runner, "evit:0.6"), predicted_classes(runner, "full"), strict=True))
    rest = [actual == full for number, (actual, full) in enumerate(pairs) if number % 4]
    qualities = {m.plan: m.quality for m in measured.measurements}
    assert qualities["evit:0.6"] == pytest.approx(np.mean(rest), abs=1e-6)


def test_progress_reaches_its_total_in_every_stage(tmp_path: Path) -> None:
    reported: dict[str, list[tuple[int, int]]] = {}
    runner = TorchRunner(tiny())

    def report(stage: str, step: str, done: int, total: int) -> None:
        reported.setdefault(stage, []).append((done, total))

    measured_profile(runner, tmp_path / "p.json", report)
    assert list(reported)[:2] == ["quality", "latency"]
    for steps in (reported["quality"], reported["latency"]):
        shares = [done / total for done, total in steps]
        assert shares == sorted(shares)
        assert (shares[0], shares[-1]) == (0, 1)


def test_quality_of_an_embedding_model_is_agreement_on_nearest_neighbours(tmp_path: Path) -> None:
    runner = TorchRunner(embedder())
    job = profiling_job(runner)
    plans = [Plan.parse(text, runner.full) for text in ("full", "evit:0.6", "embedder@32")]
    job = replace(job, plans=tuple(plans))
    model, target = UnprofiledModel(runner, "abc"), tmp_path / "p.json"
    measured = measure(model, noise_images(), job, target, quiet)
    qualities = {m.plan: m.quality for m in measured.measurements}
    assert qualities["full"] == 1 and all(m.accuracy is None for m in measured.measurements)
    vectors = {
        text: np.stack([embedded(runner, decode(str(i).encode()), text) for i in range(IMAGES)])
        for text in qualities
    }
    for text, quality in qualities.items():
        assert quality == pytest.approx(share_of_neighbours(vectors[text], vectors["full"]), abs=1e-6)
    assert 0 < qualities["embedder@32"] < 1
    assert measured.data.labelled is False and measured.content is None


def share_of_neighbours(queries: Any, gallery: Any) -> float:
    """The share of queries that find, among the other images, the neighbour that full finds."""
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (queries, gallery)]
    similarity = [rows @ unit[1].T - 9 * np.eye(len(gallery)) for rows in unit]
    return float((similarity[0].argmax(1) == similarity[1].argmax(1)).mean())


def test_interrupted_profile_of_embeddings_resumes_with_the_same_qualities(tmp_path: Path) -> None:
    runner, target = TorchRunner(embedder()), tmp_path / "p.json"
    job = replace(profiling_job(runner), plans=(runner.full, Plan.parse("evit:0.2", runner.full)))
    model = UnprofiledModel(runner, "abc")
    whole = measure(model, noise_images(), job, tmp_path / "whole.json", quiet)

    def interrupt(stage: str, step: str, done: int, total: int) -> None:
        if stage == "quality" and "evit" in step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(model, noise_images(), job, target, interrupt)
    resumed = measure(model, noise_images(), job, target, quiet)
    assert [(m.plan, m.quality) for m in resumed.measurements] == [
        (m.plan, m.quality) for m in whole.measurements
    ]


def test_a_plan_above_the_models_size_is_measured_on_images_of_its_size(tmp_path: Path) -> None:
    runner = TorchRunner(tiny())
    sides: list[int] = []

    def decoder_of(side: int) -> Callable[[bytes], Any]:
        def enlarged(data: bytes) -> Any:
            sides.append(side)
            return decode(data).repeat(side // 64, 0).repeat(side // 64, 1)

        return enlarged

    images = DecodedDataset(noise_dataset(half_right(runner)), decode, quiet, decoder_of)
    plans = [Plan.parse(text, runner.full) for text in ("full", "evit:0.2", "tiny@128/evit:0.1")]
    job = ProfilingJob(tuple(plans), batch_sizes=(1, 3), rounds=1, seed=0)
    measured = measure(unprofiled(runner), images, job, tmp_path / "p.json", quiet)
    assert set(sides) == {128} and len(sides) == IMAGES  # once each, and no image for the other plans
    by_plan = {m.plan: m for m in measured.measurements}
    large = by_plan["tiny@128/evit:0.1"]
    assert 0 <= large.quality <= 1 and large.accuracy is not None
    # It needs more compute than full, so it cannot be a rung.
    assert large.gflops > by_plan["full"].gflops and not large.rung
    assert measured.ladder[-1].plan == "full"
