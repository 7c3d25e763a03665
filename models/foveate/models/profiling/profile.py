"""Measure a model's plans: what each keeps, how long those take that may become rungs, what content asks.

Quality is measured on every picture. Latency is then measured in rounds, each of which times every plan
once in an order of its own, so that a noisy minute hits all alike; a plan that another matches in quality
for over a quarter less GFLOPs is not timed. What is known is written down after every step.
"""

import hashlib
import json
import logging
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
from pydantic import TypeAdapter, ValidationError

from foveate.core.errors import SetupError
from foveate.core.outcome import Result
from foveate.core.plan import Plan
from foveate.core.profile import (
    Measurement,
    MeasurementEnvironment,
    Profile,
    ProfilingSet,
    Schedule,
    mark_rungs,
    worth_timing,
)
from foveate.models.loading.load import setting
from foveate.models.profiling.content_profile import Learnt, learning, with_content
from foveate.models.profiling.dataset import DecodedDataset, Pixels
from foveate.models.profiling.evaluation import Evaluator, MeanIoU, Top1, read_mask
from foveate.models.profiling.searching import STEPS, find_schedule, follow_schedules
from foveate.models.profiling.timing import Times, seconds_each
from foveate.models.runners.base import ModelRunner
from foveate.models.runners.image import TorchRunner

log = logging.getLogger(__name__)

AT_LEAST = 16
"""Pictures in a round at least: where samples leave early, latency depends on what they show."""


class Unmeasured(Protocol):
    """A runner to measure, with the digests of its weights and of its siblings'."""

    @property
    def runner(self) -> ModelRunner: ...

    @property
    def weights(self) -> str: ...

    @property
    def siblings(self) -> Mapping[str, str]: ...


class Watch(Protocol):
    """Told the stage, what is being done, how much of the stage is, and out of how much."""

    def __call__(self, stage: str, what: str, done: int, total: int, /) -> None: ...


@dataclass(frozen=True, slots=True)
class Job:
    """What to measure."""

    plans: tuple[Plan, ...]
    """Full first."""
    batch_sizes: tuple[int, ...] = (1, 4, 8)
    rounds: int = 7
    seed: int = 0
    shares: tuple[float, ...] = ()
    """Of full's GFLOPs, to search DiffRate schedules for first."""


@dataclass(frozen=True, slots=True)
class State:
    """How far a job has come; written after every step, so that an interrupted one goes on."""

    job: Mapping[str, str]
    """Everything that the figures depend on. Two states with other jobs do not mix."""
    schedules: Mapping[str, Schedule] = field(default_factory=dict)
    """Those that were found, by their share."""
    named: tuple[int, ...] = ()
    """The class full names for each picture, or FAILED."""
    kept: tuple[Measurement, ...] = ()
    """Plans whose quality is known, full first; none of them timed."""
    rounds: tuple[Times, ...] = ()
    learnt: Learnt = field(default_factory=Learnt)


def measure(loaded: Unmeasured, album: DecodedDataset, job: Job, target: Path, watch: Watch) -> Profile:
    """Measure and write the profile to `target`; until then TARGET.partial holds what is known.

    Raises SetupError where nothing can be written, or where full's answers are all wrong.
    """
    if target.is_dir():
        raise SetupError(f"cannot write {target}: it is a folder")
    here = setting(loaded.runner.device.type, loaded.runner.full.precision)
    unfinished = partial_of(target)
    state = _resumed(unfinished, _told(loaded, album, job, here))
    write(unfinished, _text(state))  # what cannot be written is better known now than in an hour
    for stage in (_schedules, _qualities, _latencies):
        for further in stage(loaded.runner, album, job, state, watch):
            write(unfinished, _text(state := further))
    profile = _profile(loaded, album, job, state, here)
    if loaded.runner.card.task == "classify" and isinstance(loaded.runner, TorchRunner):
        told = partial(watch, "content")
        for learnt in learning(
            loaded.runner, album, profile, job.batch_sizes, job.rounds, state.learnt, told
        ):
            write(unfinished, _text(state := replace(state, learnt=learnt)))
        profile = with_content(profile, state.learnt)
    write(target, profile.text())
    unfinished.unlink(missing_ok=True)
    return profile


def _profile(
    loaded: Unmeasured, album: DecodedDataset, job: Job, state: State, here: MeasurementEnvironment
) -> Profile:
    """The profile as far as nothing depends on the content."""
    return Profile(
        model=loaded.runner.card.name,
        weights=loaded.weights,
        data=ProfilingSet(album.pictures.name, len(album), album.pictures.targets is not None),
        seed=job.seed,
        setting=here,
        measurements=_summary(state),
        siblings=dict(loaded.siblings),
        schedules=state.schedules,
    )


def partial_of(target: Path) -> Path:
    """Where an unfinished profile lies."""
    return target.with_name(target.name + ".partial")


def write(path: Path, text: str) -> None:
    """Write beside and rename, so that whoever reads never sees half a file. Raises SetupError."""
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(text, "utf-8")
        beside.replace(path)
    except OSError as error:
        raise SetupError(f"cannot write {path}: {error.strerror}") from None


def _told(
    loaded: Unmeasured, album: DecodedDataset, job: Job, here: MeasurementEnvironment
) -> dict[str, str]:
    """Everything that the figures depend on, by the words a person has for it."""
    where = {name: str(value) for name, value in asdict(here).items() if name != "date"}
    return where | {
        "weights": loaded.weights,
        "siblings": ",".join(f"{name} {digest}" for name, digest in loaded.siblings.items()),
        "stitches": _digest(loaded.runner),
        "schedules": ",".join(f"{share:g}" for share in job.shares),
        "pictures": album.pictures.digest(),
        "plans": ",".join(map(str, job.plans)),
        "batch sizes": ",".join(map(str, job.batch_sizes)),
        "rounds": str(job.rounds),
        "seed": str(job.seed),
    }


def _digest(runner: ModelRunner) -> str:
    """Tells the stitches of a family from others."""
    digest = hashlib.sha256()
    for stitch in runner.stitches.values() if isinstance(runner, TorchRunner) else ():
        digest.update(repr(stitch.spec).encode())
        for weight in stitch.joint.parameters():
            digest.update(weight.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()


def _resumed(partial: Path, job: Mapping[str, str]) -> State:
    """What an interrupted run of the same job left, or nothing measured yet."""
    try:
        state = TypeAdapter(State).validate_json(partial.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return State(job)
    except (OSError, ValidationError):
        log.warning("%s is not readable, so measuring starts anew", partial)
        return State(job)
    differ = sorted(name for name in job.keys() | state.job.keys() if job.get(name) != state.job.get(name))
    if differ:
        log.warning("%s is of another run, which differs in %s: starting anew", partial, ", ".join(differ))
        return State(job)
    plans, rounds = len(state.kept), len(state.rounds)
    log.info("going on from %s: the quality of %d plan(s) and %d round(s) are done", partial, plans, rounds)
    return state


def _text(state: State) -> str:
    return json.dumps(asdict(state)) + "\n"


def _schedules(
    runner: ModelRunner, album: DecodedDataset, job: Job, state: State, watch: Watch
) -> Iterator[State]:
    """The state after each DiffRate schedule that is not found yet; the model goes by them afterwards."""
    if not isinstance(runner, TorchRunner):
        return
    for number in range(len(state.schedules), len(job.shares)):

        def told(step: int, before: int = number * STEPS) -> None:
            watch("schedules", "searching DiffRate schedules", before + step, len(job.shares) * STEPS)

        share = job.shares[number]
        found = find_schedule(runner, album, share, job.seed, told)
        state = replace(state, schedules={**state.schedules, f"{share:g}": found})
        yield state
    if job.shares:
        follow_schedules(runner, state.schedules)


def _qualities(
    runner: ModelRunner, album: DecodedDataset, job: Job, state: State, watch: Watch
) -> Iterator[State]:
    """The state after the quality of each plan that is not known yet."""
    judge = evaluator_of(runner, album, state.kept, state.named)
    for number in range(len(state.kept), len(job.plans)):
        plan, given = job.plans[number], list[Result]()
        name, looked = plan.relative_to(runner.full), 0
        for chunk in album.chunks(runner.max_batch):
            watch("quality", f"quality of {name}", number * len(album) + looked, len(job.plans) * len(album))
            results = runner.run(runner.stack(chunk, plan), plan)
            judge.look(results)
            given += [_spent(r) for r in results if isinstance(r, Result)]
            looked += len(results)
        state = _with_quality(state, name, given, judge)
        yield state
    watch("quality", f"quality of {len(job.plans)} plans", len(job.plans), len(job.plans))


def _spent(result: Result) -> Result:
    """What it took, without what was found."""
    return replace(result, maps=None, frame_maps=(), over_time=None, features=None)


def _latencies(
    runner: ModelRunner, album: DecodedDataset, job: Job, state: State, watch: Watch
) -> Iterator[State]:
    """The state after each round that is not done yet."""
    plans = {plan.relative_to(runner.full): plan for plan in job.plans}
    timed = [plans[m.plan] for m in worth_timing(state.kept)]
    what, each = f"latency of {len(timed)} plans", len(timed) * len(job.batch_sizes)
    for number in range(len(state.rounds), job.rounds):
        times: dict[str, dict[int, float]] = {plan.relative_to(runner.full): {} for plan in timed}
        drawn = _drawn(album, job, number)
        for done, (plan, size) in enumerate(_order(timed, job, number)):
            watch("latency", what, number * each + done, job.rounds * each)
            times[plan.relative_to(runner.full)][size] = seconds_each(runner, plan, drawn, size)
        state = replace(state, rounds=(*state.rounds, times))
        yield state
    watch("latency", what, job.rounds * each, job.rounds * each)


def evaluator_of(
    runner: ModelRunner, album: DecodedDataset, kept: Sequence[Measurement] = (), named: Sequence[int] = ()
) -> Evaluator:
    """Who tells what a plan keeps, for this task.

    kept: what is known already, full first; named: the classes that full names, where they are known.
    """
    pictures = album.pictures
    if runner.card.task == "classify":
        return Top1(pictures.targets, named)
    side, classes, frames = runner.full.image_size, len(runner.card.labels) + 1, runner.card.frames
    if pictures.masks is not None:
        masks = (read_mask(pictures.mask(index), side, frames or 1) for index in range(len(album)))
        truth = [mask for each in masks for mask in each]
        return MeanIoU(truth, classes, kept[0].accuracy if kept else None, frames)
    judge = MeanIoU(None, classes, frames=frames)
    if kept:  # what full outlined is not written down, and is found again
        for chunk in album.chunks(runner.max_batch):
            judge.look(runner.run(runner.stack(chunk, runner.full), runner.full))
        judge.done()
    return judge


def _with_quality(state: State, plan: str, given: Sequence[Result], judge: Evaluator) -> State:
    """The state with one more plan's quality. The first plan's is full's, to which others are compared."""
    if not given:
        raise SetupError(f"{plan} gives no finite answer to any picture")
    quality, accuracy = judge.done()
    measured = Measurement(
        plan=plan,
        quality=round(quality, 6),
        accuracy=None if accuracy is None else round(accuracy, 6),
        gflops=round(statistics.fmean(result.gflops for result in given), 6),
        tokens=round(statistics.fmean(result.tokens for result in given)),
        latency_s={},
    )
    named = judge.full if isinstance(judge, Top1) else ()
    return replace(state, named=named, kept=(*state.kept, measured))


def _drawn(album: DecodedDataset, job: Job, number: int) -> list[Pixels]:
    """The pictures of one round, which every plan gets: the next few of a seeded order, over and over."""
    count = max(AT_LEAST, *job.batch_sizes)
    every = np.random.default_rng(job.seed).permutation(len(album))
    return album.at(every.take(range(number * count, (number + 1) * count), mode="wrap").tolist())


def _order(plans: Sequence[Plan], job: Job, number: int) -> Iterator[tuple[Plan, int]]:
    """What is timed in a round, in its own seeded order: every plan with every batch size."""
    random = np.random.default_rng((job.seed, number))
    for size in job.batch_sizes:
        for index in random.permutation(len(plans)).tolist():
            yield plans[index], size


def _summary(state: State) -> tuple[Measurement, ...]:
    """Every plan with its median latencies where it was timed, rungs marked, cheapest first."""

    def latency(plan: str) -> dict[int, float]:
        rounds = [times[plan] for times in state.rounds if plan in times]
        sizes = rounds[0] if rounds else ()
        return {size: round(statistics.median(times[size] for times in rounds), 9) for size in sizes}

    measured = [replace(m, latency_s=latency(m.plan)) for m in state.kept]
    return mark_rungs(sorted(measured, key=lambda m: m.gflops))
