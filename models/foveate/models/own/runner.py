"""Runs an own model: the engine's protocol around `predict`."""

import hashlib
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from foveate.core.checkpoint_options import NOTHING_STATED, CheckpointOptions
from foveate.core.class_labels import MAX_LABELS, numbered_labels
from foveate.core.errors import BadPlan, SetupError
from foveate.core.model import ModelCard, Rung
from foveate.core.outcome import Result
from foveate.core.plan import Plan
from foveate.core.profile import Profile
from foveate.models.own.declaration import declare
from foveate.models.own.inputs import PreparedBatch, failure_of, prepare
from foveate.models.own.outputs import GFLOPS, TOKENS, OutputReader

DEFAULT_MAX_BATCH = 32


@dataclass(frozen=True, slots=True)
class RunnerDevice:
    """The kind of device that a model runs on, named as torch does."""

    type: str = "cpu"


class OwnRunner:
    """An own model as a `Runner` of the engine.

    Raises SetupError for a model whose members, or whose answer to a blank image, cannot be used.
    """

    def __init__(
        self,
        model: Any,
        options: CheckpointOptions = NOTHING_STATED,
        max_batch: int = 0,
        prepare_in_run: bool = False,
    ) -> None:
        """max_batch: 0 for the model's own limit. prepare_in_run: `run` prepares its items too, so that the
        time of a batch includes that."""
        self.model, self.declaration = model, declare(model, options)
        declared = self.declaration
        self.prepare_in_run = prepare_in_run
        self._preprocess = model.preprocess if declared.preprocesses else None
        self.max_batch = max_batch or declared.max_batch or DEFAULT_MAX_BATCH
        self.full = Plan(declared.variants[-1], declared.sizes[-1])
        self.plans = tuple(Plan(variant, size) for variant in declared.variants for size in declared.sizes)
        """The declared plans; the last one is full."""
        self.times: Mapping[int, Mapping[Plan, Mapping[int, float]]] = {}
        """Seconds of a batch by number of threads, plan and batch size, as far as they are measured."""
        self.warmup: Any = None
        """The first runs that are left, a `Warmup` of the engine's protocol; None for none."""
        self.reader = OutputReader(declared.name, declared.labels, declared.softmax)
        if declared.input is not None:
            self.reader.labels = self._probed_labels()
        elif not declared.labels:
            raise SetupError(f"{declared.name} gets undecoded bytes, so it must list its labels")
        self.card = self._card()

    @property
    def device(self) -> RunnerDevice:
        """The device of torch, once this process uses a GPU; else the CPU."""
        torch = sys.modules.get("torch")
        return RunnerDevice("cuda" if torch is not None and torch.cuda.is_initialized() else "cpu")

    def candidates(self) -> tuple[Plan, ...]:
        """Plans worth measuring, full first."""
        return (self.full, *(plan for plan in self.plans if plan != self.full))

    def use_profile(self, profile: Profile) -> None:
        """Serve the rungs of a profile, if the model still has all of them. Raises SetupError otherwise."""
        rungs = tuple(
            Rung(Plan.parse(m.plan, self.full), m.gflops, m.tokens, m.quality, m.latency_s or None)
            for m in profile.ladder
        )
        self.card = self._card(rungs)

    def check(self, plan: Plan) -> None:
        """Raise BadPlan for a plan that the model has not declared."""
        if plan in self.plans:
            return
        declared = self.declaration
        if plan.variant not in declared.variants:
            raise BadPlan(
                f"{declared.name} has no variant {plan.variant}; it has {', '.join(declared.variants)}"
            )
        if plan.image_size not in declared.sizes:
            raise BadPlan(
                f"{declared.name} takes images of {', '.join(map(str, declared.sizes))} pixels a side, not "
                f"of {plan.image_size}"
            )
        raise BadPlan(f"{declared.name} knows sizes and variants only, not {plan}")

    def use(self, threads: int) -> None:
        """Run the following batches on this number of threads of torch, if the process uses torch."""
        torch = sys.modules.get("torch")
        if torch is not None:
            torch.set_num_threads(threads)

    def cost_varies(self, plan: Plan) -> bool:
        """False: no plan depends on the content of the items, as far as is known."""
        return False

    def blank_batch(self, size: int) -> PreparedBatch:
        """A batch of black images at full's size."""
        side = self.full.image_size
        return PreparedBatch([np.zeros((side, side, 3), np.uint8)] * size)

    def stack(self, media: Sequence[Any], plan: Plan) -> PreparedBatch:
        """Scale images to the plan's size, prepare them one by one, and stack them.

        Raises RunFailed for items that make no batch.
        """
        return PreparedBatch(media) if self.prepare_in_run else self._prepared(media, plan)

    def run(self, batch: PreparedBatch, plan: Plan) -> Sequence[Result | Exception]:
        """One result or error for each item. Raises what `predict` raises for the batch, and RunFailed."""
        if batch.plan != plan:
            batch = self._prepared(batch.media, plan)
        count = len(batch) - len(batch.failures)
        results = iter(self.reader.read(self._predict(batch.inputs, plan), count) if count else ())
        return [batch.failures[i] if i in batch.failures else next(results) for i in range(len(batch))]

    def _prepared(self, media: Sequence[Any], plan: Plan) -> PreparedBatch:
        spec = self.declaration.input
        if spec is None:
            return PreparedBatch(media, plan, list(media))
        return prepare(media, plan, spec.interpolation, self._preprocess)

    def _predict(self, inputs: Any, plan: Plan) -> Any:
        known = {"size": plan.image_size, "variant": plan.variant, "plan": plan}
        keywords = {name: known[name] for name in self.declaration.keywords}
        try:
            with _without_gradients():
                return self.model.predict(inputs, **keywords)
        except Exception:
            raise
        except BaseException as error:  # such as sys.exit, or a panic of a library in Rust
            raise failure_of("predict", error) from error

    def _probed_labels(self) -> tuple[str, ...]:
        """The labels, made up from the number of scores of a blank image where none are declared.

        Raises SetupError where the scores and the labels do not fit.
        """
        declared = self.declaration
        batch = self._prepared(self.blank_batch(1).media, self.full)
        for error in batch.failures.values():
            raise error
        (item,) = self.reader.items(self._predict(batch.inputs, self.full), 1)
        scores = item if isinstance(item, np.ndarray | list | tuple) else getattr(item, "scores", None)
        if not declared.labels:
            if scores is None or not hasattr(scores, "__len__"):
                raise SetupError(
                    f"{declared.name}.predict returns a {type(item).__name__} for an image, so it must list "
                    "its labels, as in labels = ['cat', 'dog']"
                )
            if len(scores) > MAX_LABELS:
                raise SetupError(
                    f"{declared.name}.predict returns {len(scores)} scores for an image, and at most "
                    f"{MAX_LABELS} classes are served: return those of the likeliest classes"
                )
            return numbered_labels(len(scores))
        if scores is not None and len(scores) != len(declared.labels):
            raise SetupError(
                f"predict of {declared.name} returned {len(scores)} scores for an image, and its labels are "
                f"{len(declared.labels)}: name each class once"
            )
        return declared.labels

    def _card(self, ladder: Sequence[Rung] = ()) -> ModelCard:
        """The card; without a profile, only full has a quality, so that the policy chooses no other plan."""
        declared = self.declaration
        others = [Rung(plan, GFLOPS, TOKENS, None) for plan in self.plans[:-1]]
        return ModelCard(
            name=declared.name,
            description=declared.description,
            full=self.full,
            labels=self.reader.labels,
            parameters=_parameters(self.model),
            input=declared.input,
            ladder=tuple(ladder) or (*others, Rung(self.full, GFLOPS, TOKENS, 1.0)),
            source=type(self.model).__module__,
            weights=self.digest if declared.version else "",
        )

    @property
    def digest(self) -> str:
        """A digest of everything that is known about the model's answers: its name, version and members."""
        declared = self.declaration
        known = (type(self.model).__qualname__, declared.version, declared.labels, declared.softmax)
        return hashlib.sha256(repr((*known, declared.sizes, declared.variants)).encode()).hexdigest()


def _without_gradients() -> AbstractContextManager[Any]:
    """Torch's mode without gradients, if the process uses torch."""
    torch = sys.modules.get("torch")
    return nullcontext() if torch is None else torch.no_grad()


def _parameters(model: Any) -> int:
    """The number of parameters of a torch module; 0 for anything else, since it is not known."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(model, torch.nn.Module):
        return 0
    return sum(parameter.numel() for parameter in model.parameters())
