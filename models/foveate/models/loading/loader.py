"""The protocol of model loaders, what they return, and the steps that all of them share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from foveate.core.checkpoint_options import NOTHING_STATED, CheckpointOptions
from foveate.core.errors import BadPlan, SetupError
from foveate.core.plan import Plan, Precision
from foveate.core.profile import MeasurementEnvironment
from foveate.models.loading import precision
from foveate.models.loading.machine import current_setting, prepare_device
from foveate.models.loading.measured_times import MeasuredTimes
from foveate.models.loading.precision import ModelT
from foveate.models.loading.warmup import LadderWarmup, run_once
from foveate.models.runners.base import ModelRunner, PlanRunner

RunnerT_co = TypeVar("RunnerT_co", bound=PlanRunner, covariant=True)


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """Where and how a model runs."""

    precision: Precision | None = None
    """None: measure which is the fastest precision that keeps the answers."""
    device: str = "auto"
    threads: int = 0
    """Threads of one forward; 0: one for each core."""
    max_batch: int = 0
    """Requests in a batch at most; 0: the default of the device."""
    chat_slots: int = 16
    """Chats that a vision-language model answers at once."""
    chat_slot_tokens: int = 1024
    """Tokens of each of them at most."""
    checkpoints: Mapping[str, CheckpointOptions] = field(default_factory=dict)
    """What is stated about checkpoints, by the name that the model is loaded by."""

    def stated(self, name: str) -> CheckpointOptions:
        """What is stated about the checkpoint of this name."""
        return self.checkpoints.get(name, NOTHING_STATED)


DEFAULT_OPTIONS = LoadOptions()
SEPARATOR = ","
"""Between the names of the models of a family."""


@dataclass(frozen=True, slots=True)
class UnprofiledModel(Generic[RunnerT_co]):
    """A runner that is not profiled yet, with the digests that its profile will name."""

    runner: RunnerT_co
    weights: str
    """SHA-256 digest of the weights, in float32."""
    siblings: Mapping[str, str] = field(default_factory=dict)
    """The digest of each sibling's weights, by the sibling's name."""


class ModelLoader(Protocol[RunnerT_co]):
    """Loads the models of one kind by name."""

    def accepts(self, name: str) -> bool:
        """Whether this loader loads the model of this name."""
        ...

    def load(
        self, name: str, options: LoadOptions = DEFAULT_OPTIONS, *, warm_ladder: bool = True
    ) -> RunnerT_co:
        """Load a model with its profile, and run it once.

        `warm_ladder`: run and time what the first requests need, for a model that is to be served. Raises
        SetupError for a model that does not exist or that cannot run on this machine.
        """
        ...

    def load_unprofiled(
        self, name: str, options: LoadOptions = DEFAULT_OPTIONS, siblings: Sequence[str] = ()
    ) -> UnprofiledModel[RunnerT_co]:
        """Load a model without a profile, to measure one.

        `siblings`: names of lighter models that may answer in its place. Raises SetupError as `load`
        does, and for siblings of a model that cannot have any.
        """
        ...


@dataclass(frozen=True, slots=True)
class FetchedModel(Generic[ModelT]):
    """A model that was read, and the precision and device to run it with."""

    model: ModelT
    precision: Precision
    device: str

    @property
    def setting(self) -> MeasurementEnvironment:
        """This machine, under this precision."""
        return current_setting(self.device, self.precision)


def fetch(
    name: str,
    options: LoadOptions,
    read: Callable[[str], ModelT],
    precision_basis: Callable[[str, ModelT], ModelT] | None = None,
) -> FetchedModel[ModelT]:
    """Set up the device, read a model, and choose its precision.

    `precision_basis` gives the model whose answers decide the precision, where that is another one.
    """
    device = prepare_device(options.device, options.threads)
    model = read(name)
    chosen = options.precision
    if chosen is None:
        basis = model if precision_basis is None else precision_basis(name, model)
        chosen = precision.choose(basis, device)
    return FetchedModel(model, chosen, device)


def is_single(name: str) -> bool:
    """Whether a name stands for one model. A file or folder may have the separator of lists in its name."""
    return SEPARATOR not in name or Path(name).exists()


def members_of(name: str) -> list[str]:
    """The models that a name lists, the full one first. Raises SetupError for an empty or repeated one."""
    if is_single(name):
        return [name]
    names = [part.strip() for part in name.split(SEPARATOR)]
    if not all(names) or len(set(names)) < len(names):
        raise SetupError(f"{name} must name each member of the family once, as in large,small")
    return names


def check_rungs(name: str, runner: PlanRunner, others: Sequence[Plan] = ()) -> None:
    """Raises SetupError if the ladder, or one of the `others`, has a plan that cannot run."""
    try:
        for plan in (*(rung.plan for rung in runner.card.ladder), *others):
            runner.check(plan)
    except BadPlan as error:
        raise SetupError(f"{name} has a rung that cannot be run here: {error.detail}") from None


def start(
    name: str,
    runner: ModelRunner,
    warm_ladder: bool,
    other_plans: Sequence[Plan] = (),
) -> None:
    """Check every rung of a runner, then run it once, or what its first requests need (`warm_up`)."""
    check_rungs(name, runner, other_plans)
    if warm_ladder:
        warm_up(runner, runner.card.weights)
    else:
        run_once(runner)


def warm_up(runner: ModelRunner, weights: str, thread_counts: Sequence[int] = ()) -> None:
    """Run what the first requests of a runner need. The engine runs the rest of its ladder in idle time.

    weights: a digest of the weights, under which measured times are kept for the next start; empty keeps
    none. thread_counts: the numbers of threads to try; empty: a few up to the number of cores. Raises
    SetupError if the model gives no finite answer.
    """
    rungs = [rung.plan for rung in runner.card.ladder]
    kept = MeasuredTimes(weights, runner.full, rungs, runner.device.type)
    warmup = LadderWarmup(runner, thread_counts, kept.read(), kept.write)
    warmup.run_essential()
    runner.times, runner.warmup = warmup.times, warmup
