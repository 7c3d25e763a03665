"""The state of an unfinished profile, and the partial file from which an interrupted run resumes."""

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from pydantic import TypeAdapter, ValidationError

from foveate.core.errors import SetupError
from foveate.core.plan import Plan
from foveate.core.profile import Measurement, MeasurementEnvironment, Schedule
from foveate.models.loading.loader import UnprofiledModel
from foveate.models.profiling.content_profile import LearnedContent
from foveate.models.profiling.dataset import DecodedDataset
from foveate.models.profiling.screening_rules import DroppedPlan, Trial
from foveate.models.profiling.timing import RoundTimes
from foveate.models.runners.base import ModelRunner
from foveate.models.runners.image import TorchRunner

log = logging.getLogger(__name__)


class ReportStage(Protocol):
    """Called with the stage, a description of the step, how much of the stage is done, and the total."""

    def __call__(self, stage: str, step: str, done: int, total: int, /) -> None: ...


class PartialState(Protocol):
    """What every state of an unfinished profile has. It is a dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def job(self) -> Mapping[str, str]:
        """Everything that the results depend on."""
        ...

    @property
    def kept(self) -> Sequence[Measurement]:
        """The plans whose quality is measured."""
        ...

    @property
    def rounds(self) -> Sequence[object]:
        """The rounds of timing that are done."""
        ...


StateT = TypeVar("StateT", bound=PartialState)


@dataclass(frozen=True, slots=True)
class ProfilingJob:
    """What to measure."""

    plans: tuple[Plan, ...]
    """Full first."""
    batch_sizes: tuple[int, ...] = (1, 4, 8)
    rounds: int = 7
    seed: int = 0
    shares: tuple[float, ...] = ()
    """Shares of full's GFLOPs to search DiffRate schedules for, before the plans are measured."""
    screened: bool = True
    """Whether plans far from the frontier are dropped after a few images, if there are many plans."""
    budget_s: float | None = None
    """Seconds that measuring may take; None: no limit. It is no part of the job's identity."""


@dataclass(frozen=True, slots=True)
class ProfilingState:
    """The results so far. It is written after every step; the field names are those of the partial file."""

    job: Mapping[str, str]
    """Everything that the results depend on. A run does not resume from the state of another job."""
    schedules: Mapping[str, Schedule] = field(default_factory=dict)
    """The schedules that were searched, by their share."""
    named: tuple[int, ...] = ()
    """The class that full predicts for each image, or FAILED."""
    kept: tuple[Measurement, ...] = ()
    """The plans whose quality is measured, full first, without latencies."""
    rounds: tuple[RoundTimes, ...] = ()
    learnt: LearnedContent = field(default_factory=LearnedContent)
    budget_s: float | None = None
    spent_s: float = 0.0
    """Seconds of the budget that are spent."""
    stages: tuple[int, ...] | None = None
    """Images of each stage of the screening; None: not chosen yet."""
    screened: int = 0
    """Stages of the screening that are done."""
    trials: Mapping[str, Trial] = field(default_factory=dict)
    """The results of the screening by plan."""
    dropped: tuple[DroppedPlan, ...] = ()

    def for_budget(self, budget_s: float | None) -> "ProfilingState":
        """The state under a budget. With another budget than before, its time counts anew, what was measured
        stays, and what was dropped is considered again."""
        if budget_s == self.budget_s:
            return self
        rest = {"stages": None, "screened": 0, "dropped": (), "learnt": LearnedContent()}
        return replace(self, budget_s=budget_s, spent_s=0.0, **rest)  # type: ignore[arg-type]


def partial_path(target: Path) -> Path:
    """The file that holds an unfinished profile."""
    return target.with_name(target.name + ".partial")


def write_atomically(path: Path, text: str) -> None:
    """Write a file by renaming, so that a reader never sees half of it. Raises SetupError."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, "utf-8")
        temporary.replace(path)
    except OSError as error:
        raise SetupError(f"cannot write {path}: {error.strerror}") from None


def write_state(path: Path, state: PartialState) -> None:
    """Write the partial file. Raises SetupError if it cannot be written."""
    write_atomically(path, json.dumps(asdict(state)) + "\n")


def read_state(path: Path, job: Mapping[str, str]) -> ProfilingState:
    """The state that an interrupted run of the same job left, else an empty one; the log says which."""
    return read_partial(path, ProfilingState(job))


def read_partial(path: Path, empty: StateT) -> StateT:
    """As `read_state`, of any type of state. empty: the state before the first step, with the job."""
    job = empty.job
    try:
        state = TypeAdapter(type(empty)).validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return empty
    except (OSError, ValidationError):
        log.warning("%s is not readable, so measuring starts from the beginning", path)
        return empty
    differ = sorted(name for name in job.keys() | state.job.keys() if job.get(name) != state.job.get(name))
    if differ:
        log.warning(
            "%s is of another run, which differs in %s: starting from the beginning", path, ", ".join(differ)
        )
        return empty
    plans, rounds = len(state.kept), len(state.rounds)
    log.info("resuming from %s: the quality of %d plan(s) and %d round(s) are done", path, plans, rounds)
    return state


def job_identity(
    model: UnprofiledModel[ModelRunner],
    images: DecodedDataset,
    job: ProfilingJob,
    setting: MeasurementEnvironment,
) -> dict[str, str]:
    """Everything that the results depend on, by a name that the log can show."""
    return machine_identity(setting) | {
        "weights": model.weights,
        "siblings": ",".join(f"{name} {digest}" for name, digest in model.siblings.items()),
        "stitches": _stitches_digest(model.runner),
        "schedules": ",".join(f"{share:g}" for share in job.shares),
        "pictures": images.dataset.digest(),
        "plans": ",".join(map(str, job.plans)),
        "screening": "yes" if job.screened else "no",
        "batch sizes": ",".join(map(str, job.batch_sizes)),
        "rounds": str(job.rounds),
        "seed": str(job.seed),
    }


def machine_identity(setting: MeasurementEnvironment) -> dict[str, str]:
    """The machine and the versions, without the date."""
    return {name: str(value) for name, value in asdict(setting).items() if name != "date"}


def _stitches_digest(runner: ModelRunner) -> str:
    """SHA-256 over the stitches of a family; that of nothing for other runners."""
    digest = hashlib.sha256()
    for stitch in runner.stitches.values() if isinstance(runner, TorchRunner) else ():
        digest.update(repr(stitch.spec).encode())
        for weight in stitch.joint.parameters():
            digest.update(weight.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()
