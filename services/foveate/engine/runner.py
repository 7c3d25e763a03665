"""What the engine asks of a model. Anything with these members can be served; torch is not needed."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from foveate.core.model import ModelCard
from foveate.core.outcome import Explanation, Result
from foveate.core.plan import Plan


class Runner(Protocol):
    """Runs batches. `stack` and `run` are called from threads, `run` never twice at once.

    Batch sizes are those of `foveate.core.batching.BATCH_SIZES`, up to `max_batch`.
    """

    @property
    def card(self) -> ModelCard: ...

    @property
    def max_batch(self) -> int:
        """Items in one batch at most."""
        ...

    def check(self, plan: Plan) -> None:
        """Raises BadPlan when this model cannot run the plan."""
        ...

    def stack(self, media: Sequence[Any], plan: Plan) -> Any:
        """Put decoded media together as one input. May run while another batch runs."""
        ...

    def run(self, batch: Any, plan: Plan) -> Sequence[Result | Exception]:
        """One result an item, in order; an exception in an item's place fails that item alone."""
        ...


@runtime_checkable
class HasThreads(Protocol):
    """What a runner on a CPU may be besides: one that can leave cores to others."""

    @property
    def times(self) -> Mapping[int, Mapping[Plan, Mapping[int, float]]]:
        """Seconds of a batch by threads, plan and size, measured on this machine at the start."""
        ...

    def use(self, threads: int) -> None:
        """Run what comes next on so many threads, one of those that were measured. Called where `run` is."""
        ...


@runtime_checkable
class HasSubmodels(Protocol):
    """What a runner may be besides: one that brings others, which work on what it makes."""

    @property
    def submodels(self) -> Sequence[Runner]:
        """To be served beside it, each under its own name."""
        ...


@runtime_checkable
class HasExplanations(Protocol):
    """What a runner may be besides: one that can tell what it looked at. Called where `run` is called."""

    def explain(self, media: Sequence[Any], plan: Plan) -> Sequence[Explanation]:
        """One account an item, in order."""
        ...
