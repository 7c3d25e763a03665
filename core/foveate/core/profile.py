"""A profile: the measured quality and cost of each plan of one model, and which plans are its rungs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config

from foveate.core.content import ContentRungs
from foveate.core.errors import BadPlan, SetupError
from foveate.core.plan import Plan

COST_TOLERANCE = 0.02
"""Relative difference below which two costs count as equal: the noise of time measurements."""
GFLOPS_MARGIN = 0.25
"""A plan is not timed if another plan of at least its quality needs this much less GFLOPs."""

BASELINE_REDUCERS = ("random", "pooling")
"""Token reducers that are measured for comparison only. A plan with one of them never becomes a rung."""
BASELINE_METHODS = ("random", "uniform")
"""The same of the compression methods of vision-language models."""
BASELINES = tuple(dict.fromkeys((*BASELINE_REDUCERS, *BASELINE_METHODS)))

Schedule = tuple[tuple[int, int], ...]
"""For each block, the tokens kept by pruning and then by merging, prefix included (DiffRate)."""
MergeBlocks = tuple[tuple[float, float], ...]
"""For each block, the cosine above which tokens merge, and the mean number of tokens left (DyMU)."""
_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
Share = Annotated[float, Field(ge=0, le=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
Cost = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


@with_config(_STRICT)
@dataclass(frozen=True, slots=True)
class MeasurementEnvironment:
    """The machine and the software on which latencies were measured."""

    device: str
    """Name of the processor or the GPU."""
    threads: int
    """Threads of one forward."""
    precision: str
    torch: str
    python: str
    foveate: str
    date: str
    """ISO 8601 date of the measurement."""

    def differs_from(self, other: "MeasurementEnvironment") -> str | None:
        """Why latencies of this environment do not hold in the other, as a sentence; None if they do.

        Different versions and dates do not matter.
        """
        names = [f"{s.device} with {s.threads} thread(s) in {s.precision}" for s in (self, other)]
        return None if names[0] == names[1] else f"latencies were measured on {names[0]}, not {names[1]}"


@with_config(_STRICT)
@dataclass(frozen=True, slots=True)
class ProfilingSet:
    """The data set on which quality was measured."""

    name: str
    pictures: Count
    """Number of images or clips."""
    labelled: bool
    """Whether the images have labels. Without labels, quality is the agreement with the full plan."""


@with_config(_STRICT)
@dataclass(frozen=True, slots=True)
class ChatMeasurement:
    """What a plan of a vision-language model has beside its quality: kinds of questions, and stages.

    Pictures are encoded, then the projector, the compression method and the language model prefill the
    prompt, and then each further token of the answer takes one step of decoding.
    """

    by_kind: Mapping[str, Share]
    """The share of right answers of each kind of question; without answers, of those equal to full's."""
    worst_kind: str
    """The kind that keeps the least of full."""
    worst_quality: Share
    """What it keeps: its share of right answers over full's, at most 1."""
    encode_gflops: Cost
    prefill_gflops: Cost
    decode_gflops: Cost
    """Billions of multiply-adds of each stage for one question about one picture."""
    encode_s: Mapping[Count, PositiveFloat] = field(default_factory=dict)
    prefill_s: Mapping[Count, PositiveFloat] = field(default_factory=dict)
    decode_s: Mapping[Count, PositiveFloat] = field(default_factory=dict)
    """Seconds of a batch by its size, the median; empty if not measured."""

    def untimed(self) -> "ChatMeasurement":
        """The same without seconds."""
        return replace(self, encode_s={}, prefill_s={}, decode_s={})


@with_config(_STRICT)
@dataclass(frozen=True, slots=True)
class Measurement:
    """The measured quality and cost of one plan."""

    plan: str
    """Relative to the model's full plan, as in ``evit:0.5`` or ``vit-xs@112/evit:0.5``; full is ``full``."""
    quality: Share
    """Accuracy over that of full, at most 1; without labels, the share of answers equal to those of full."""
    accuracy: Share | None
    """Top-1 accuracy, mean IoU of a segmentation model, or the share of right answers of a vision-language
    model, the mean over kinds of questions; None without labels."""
    gflops: Cost
    """Billions of multiply-adds for an image, the mean; 0 if they are not known. Of a vision-language model
    up to the first token of the answer."""
    tokens: Count
    """Tokens left after the last block, prefix tokens included: the mean, rounded. Visual tokens of a
    vision-language model."""
    latency_s: Mapping[Count, PositiveFloat]
    """Seconds of a batch by its size, the median; empty if not measured. Of a vision-language model up to the
    first tokens of the answers."""
    rung: bool = False
    """Whether the plan is a rung of the ladder."""
    chat: ChatMeasurement | None = None
    """None for a model that answers no questions."""

    @property
    def seconds(self) -> float | None:
        """Seconds for one image in the largest batch that was measured; None if not measured."""
        return self.latency_s[max(self.latency_s)] / max(self.latency_s) if self.latency_s else None

    @property
    def baseline(self) -> str | None:
        """The baseline reducer or method of the plan; None for a plan that may become a rung."""
        parts = {part.partition(":")[0] for part in self.plan.split("/")}
        return next((name for name in BASELINES if name in parts), None)

    def untimed(self) -> "Measurement":
        """The same without latencies."""
        return replace(self, latency_s={}, chat=self.chat and self.chat.untimed())


@with_config(_STRICT)
@dataclass(frozen=True, slots=True)
class DroppedFamily:
    """Plans of one kind that were not measured to the end, for the same reason."""

    plans: str
    """The plan itself if it is one, else what they have in common, as in ``tome`` or ``evit + exit``."""
    count: Count
    stage: str
    """When they were dropped, as in ``screening on 32 images``."""
    reason: str
    better: str
    """A plan that is better; empty if there is none."""


@with_config(_STRICT)
@dataclass(frozen=True, slots=True)
class PlanSearch:
    """What was tried to find the rungs of a profile."""

    tried: Count
    """Plans that profiling started from."""
    dropped: Annotated[int, Field(ge=0)]
    """Plans that were not measured to the end."""
    budget_s: PositiveFloat | None
    """Seconds that profiling was allowed to take; None: no limit."""
    within_budget: bool
    """Whether the time sufficed for all plans that deserved it."""
    families: tuple[DroppedFamily, ...] = ()
    """What was dropped, and why."""


@with_config(_STRICT)
@dataclass(frozen=True, slots=True)
class Profile:
    """The measured file behind a model's ladder."""

    model: str
    weights: str
    """SHA-256 digest of the measured weights."""
    data: ProfilingSet
    seed: int
    setting: MeasurementEnvironment
    measurements: tuple[Measurement, ...]
    siblings: Mapping[str, str] = field(default_factory=dict)
    """Names of the siblings among the plans, with the SHA-256 digests of their weights."""
    content: ContentRungs | None = None
    """The fitted choice of a rung by an image's content; None if it was not fitted."""
    schedules: Mapping[str, Schedule] = field(default_factory=dict)
    """DiffRate's searched schedules, by the target in the plan's text."""
    search: PlanSearch | None = None
    """None for a profile of an older version."""
    merging: Mapping[Count, MergeBlocks] = field(default_factory=dict)
    """Calibrated thresholds of merging inside the tower of a vision-language model, by the visual tokens."""

    def __post_init__(self) -> None:
        plans = [m.plan for m in self.measurements]
        rungs = self.content.rungs if self.content else ()
        for plan in (*plans, *rungs):
            try:
                parsed = Plan.parse(plan, Plan(self.model, 224))  # any size will do
            except BadPlan as error:
                raise ValueError(error.detail) from None
            if plan in rungs and parsed.content is not None:
                raise ValueError(f"the rungs of a content plan must not be content plans themselves: {plan}")
        if "full" not in plans or len(set(plans)) < len(plans):
            raise ValueError("the plans of a profile must be unique and include full")

    @property
    def full(self) -> Measurement:
        """The measurement of the full plan."""
        return next(m for m in self.measurements if m.plan == "full")

    @property
    def ladder(self) -> tuple[Measurement, ...]:
        """The rungs, cheapest first; the last is full."""
        timed = bool(self.full.latency_s)
        rungs = [m for m in self.measurements if m.rung and m is not self.full]
        return (*sorted(rungs, key=lambda m: _cost(m, timed)), self.full)

    def latency_on(self, setting: MeasurementEnvironment) -> "Profile":
        """The profile for another environment: unchanged, or without latencies that do not hold there.

        Without latencies, the rungs are those of the old ones that remain rungs by GFLOPs.
        """
        if self.setting.differs_from(setting) is None:
            return self
        untimed = [m.untimed() for m in self.measurements]
        return replace(self, measurements=_marked(untimed, [m for m in untimed if m.rung]))

    @classmethod
    def read(cls, text: str, where: str) -> "Profile":
        """Parse a profile's JSON. Raises SetupError; `where` names the file in its message."""
        try:
            return TypeAdapter(cls).validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            at = ".".join(str(part) for part in first["loc"])
            raise SetupError(
                f"{where} is not a valid profile: {at or 'document'}: {first['msg']}; measure it again"
            ) from None

    def text(self) -> str:
        """The profile as JSON, which `read` parses."""
        return json.dumps(asdict(self), indent=1) + "\n"


def mark_rungs(measurements: Sequence[Measurement]) -> tuple[Measurement, ...]:
    """The same measurements with the rungs marked: full, and the Pareto-optimal plans below it.

    Plans with a baseline reducer are neither rungs nor do they dominate a rung.

    Cost is seconds for an image in the largest measured batch, or GFLOPs if full was not timed. A plan is
    dominated by a plan of better quality that costs at most COST_TOLERANCE more, and by a cheaper plan of the
    same quality. A rung must cost less than full by more than COST_TOLERANCE.
    """
    return _marked(measurements, [m for m in measurements if m.baseline is None])


def worth_timing(measurements: Sequence[Measurement]) -> tuple[Measurement, ...]:
    """The measurements of plans that may become rungs once they are timed, full included.

    Each other plan is matched in quality by a plan that needs less GFLOPs, by more than GFLOPS_MARGIN. Plans
    with a baseline reducer are compared with the others, but not the others with them.
    """
    rivals = [o for o in measurements if o.baseline is None]

    def dominated(m: Measurement) -> bool:
        return any(o.quality >= m.quality and (1 + GFLOPS_MARGIN) * o.gflops < m.gflops for o in rivals)

    return tuple(m for m in measurements if m.plan == "full" or not dominated(m))


def _marked(measurements: Sequence[Measurement], among: Sequence[Measurement]) -> tuple[Measurement, ...]:
    """The measurements with the rungs marked. Only plans in `among` can become rungs."""
    full = next(m for m in measurements if m.plan == "full")
    timed = bool(full.latency_s)
    costs = {m.plan: _cost(m, timed) for m in among}
    below = [m for m in among if (1 + COST_TOLERANCE) * costs[m.plan] < _cost(full, timed)]

    def dominates(a: Measurement, b: Measurement) -> bool:
        if a.quality == b.quality:
            return (costs[a.plan], a.plan) < (costs[b.plan], b.plan)
        return a.quality > b.quality and costs[a.plan] <= (1 + COST_TOLERANCE) * costs[b.plan]

    rungs = {m.plan for m in below if not any(dominates(other, m) for other in below)} | {"full"}
    return tuple(replace(m, rung=m.plan in rungs) for m in measurements)


def _cost(m: Measurement, timed: bool) -> float:
    return (m.seconds or float("inf")) if timed else m.gflops
