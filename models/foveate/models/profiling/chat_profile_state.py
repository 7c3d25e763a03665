"""The state of an unfinished profile of a vision-language model."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from foveate.core.profile import Measurement, MeasurementEnvironment, MergeBlocks
from foveate.models.loading.loader import UnprofiledModel
from foveate.models.profiling.chat_timing import ChatRound
from foveate.models.profiling.profile_state import ProfilingJob, machine_identity
from foveate.models.profiling.question_set import DecodedQuestions
from foveate.models.vlm.runner import ChatRunner


@dataclass(frozen=True, slots=True)
class ChatProfilingState:
    """The results so far. It is written after every step; the field names are those of the partial file."""

    job: Mapping[str, str]
    """Everything that the results depend on. A run does not resume from the state of another job."""
    merging: Mapping[int, MergeBlocks] = field(default_factory=dict)
    """The thresholds that are calibrated, by the number of visual tokens."""
    full_answers: tuple[str, ...] = ()
    """What full answers to each question."""
    kept: tuple[Measurement, ...] = ()
    """The plans whose quality is measured, full first, without latencies."""
    rounds: tuple[ChatRound, ...] = ()
    budget_s: float | None = None
    spent_s: float = 0.0
    """Seconds of the budget that are spent."""
    late: tuple[str, ...] = ()
    """Plans for which the budget left no time."""

    def for_budget(self, budget_s: float | None) -> "ChatProfilingState":
        """The state under a budget. With another one than before, its time counts anew; results stay."""
        return self if budget_s == self.budget_s else replace(self, budget_s=budget_s, spent_s=0.0, late=())


def chat_job_identity(
    model: UnprofiledModel[ChatRunner],
    data: DecodedQuestions,
    job: ProfilingJob,
    setting: MeasurementEnvironment,
) -> dict[str, str]:
    """Everything that the results depend on, by a name that the log can show."""
    return machine_identity(setting) | {
        "weights": model.weights,
        "questions": data.digest(),
        "plans": ",".join(map(str, job.plans)),
        "batch sizes": ",".join(map(str, job.batch_sizes)),
        "rounds": str(job.rounds),
        "seed": str(job.seed),
    }
