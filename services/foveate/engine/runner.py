"""The protocol between the engine and a model. Any object with these members can be served, without torch."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from foveate.core.batching import WarmedPlan
from foveate.core.model import ModelCard
from foveate.core.outcome import Explanation, Result
from foveate.core.plan import Plan


class Runner(Protocol):
    """Runs batches. `stack` and `run` are called from threads, and `run` never twice at the same time.

    Batch sizes are those of `foveate.core.batching.BATCH_SIZES`, up to `max_batch`.
    """

    @property
    def card(self) -> ModelCard:
        """The name, labels, input and ladder of the model."""
        ...

    @property
    def max_batch(self) -> int:
        """Largest number of items in a batch."""
        ...

    def check(self, plan: Plan) -> None:
        """Raises BadPlan if this model cannot run the plan."""
        ...

    def stack(self, media: Sequence[Any], plan: Plan) -> Any:
        """Combine decoded media into the input of `run`. May be called while another batch runs."""
        ...

    def run(self, batch: Any, plan: Plan) -> Sequence[Result | Exception]:
        """One result for each item, in order. An exception in the place of a result fails that item alone."""
        ...


@runtime_checkable
class HasThreads(Protocol):
    """Optional: a runner on a CPU that can run on a different number of threads from batch to batch."""

    @property
    def times(self) -> Mapping[int, Mapping[Plan, Mapping[int, float]]]:
        """Seconds of a batch by threads, plan and batch size, as far as they are measured on this machine."""
        ...

    def use(self, threads: int) -> None:
        """Run the next batch on this many threads, a key of `times`. Called on the thread of `run`."""
        ...


class Warmup(Protocol):
    """The blank batches that a runner has yet to run, so that no request waits for the set-up of its plan."""

    @property
    def warm(self) -> Sequence[WarmedPlan]:
        """The plans that have run; full is one of them."""
        ...

    @property
    def next(self) -> tuple[Plan, int] | None:
        """Plan and size of the next batch; None if all have run."""
        ...

    @property
    def ratio(self) -> float:
        """The share of the batches that have run, 0 to 1."""
        ...

    def run_next(self) -> WarmedPlan | None:
        """Run the next batch, on the thread of `run`; the plan, once all its batches have run."""
        ...

    def skip(self, plan: Plan) -> None:
        """Leave out the batches of a plan that are left, because one has failed."""
        ...


@runtime_checkable
class HasWarmup(Protocol):
    """Optional: a runner whose first batch of a plan takes much longer than the next one."""

    @property
    def warmup(self) -> Warmup | None:
        """The batches that are left when the runner starts to serve; None if there are none."""
        ...


@runtime_checkable
class HasSubmodels(Protocol):
    """Optional: a runner with other models that work on its outputs."""

    @property
    def submodels(self) -> Sequence[Runner]:
        """The runners to serve together with this one, each under its own name."""
        ...


@runtime_checkable
class HasExplanations(Protocol):
    """Optional: a runner that can explain its results. Called on the thread that calls `run`."""

    def explain(self, media: Sequence[Any], plan: Plan) -> Sequence[Explanation]:
        """One explanation for each item, in order."""
        ...
