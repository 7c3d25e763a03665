"""A profile: what each plan of one model was measured to keep and to cost, and which plans are its rungs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config

from foveate.core.content import ContentRungs
from foveate.core.errors import BadPlan, SetupError
from foveate.core.plan import Plan

TIE = 0.02
"""Costs no further apart than this are the same cost: clocks tell no more."""
SLACK = 0.25
"""A plan that another matches in quality for this much less GFLOPs is not worth a clock's time."""

Schedule = tuple[tuple[int, int], ...]
"""For each block, the tokens kept by pruning and then by merging, prefix included (DiffRate)."""
_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


@with_config(_STRICT)
@dataclass(frozen=True, slots=True)
class Setting:
    """Where and when latencies were measured."""

    device: str
    """Name of the processor or the GPU."""
    threads: int
    """Threads of one forward."""
    precision: str
    torch: str
    python: str
    foveate: str
    date: str
    """ISO 8601."""

    def differs_from(self, other: "Setting") -> str | None:
        """What makes latencies of one setting worthless in the other, as a sentence; None: nothing.

        Versions that differ, or dates, are no reason.
        """
        places = [f"{s.device} with {s.threads} thread(s) in {s.precision}" for s in (self, other)]
        return None if places[0] == places[1] else f"latencies were measured on {places[0]}, not {places[1]}"


@with_config(_STRICT)
@dataclass(frozen=True, slots=True)
class Data:
    """What quality was measured on."""

    name: str
    pictures: Count
    labelled: bool
    """False: quality is agreement with full, for nobody knows what the pictures show."""


@with_config(_STRICT)
@dataclass(frozen=True, slots=True)
class Measurement:
    """What one plan keeps and costs."""

    plan: str
    """Relative to the model's full plan, as in ``evit:0.5`` or ``vit-xs@112/evit:0.5``; full is ``full``."""
    quality: Share
    """Accuracy over full's, at most 1; without labels, the share of pictures named as full names them."""
    accuracy: Share | None
    """Top-1; None without labels."""
    gflops: Positive
    """Billions of multiply-adds a picture, the mean."""
    tokens: Count
    """Tokens left at the end, prefix included: the mean, rounded."""
    latency_s: Mapping[Count, Positive]
    """Seconds a batch by its size, the median; empty: not measured."""
    rung: bool = False

    @property
    def seconds(self) -> float | None:
        """Seconds a picture in the largest batch that was measured."""
        return self.latency_s[max(self.latency_s)] / max(self.latency_s) if self.latency_s else None


@with_config(_STRICT)
@dataclass(frozen=True, slots=True)
class Profile:
    """The measured file behind a model's ladder."""

    model: str
    weights: str
    """SHA-256 digest of the weights that were measured."""
    data: Data
    seed: int
    setting: Setting
    measurements: tuple[Measurement, ...]
    siblings: Mapping[str, str] = field(default_factory=dict)
    """Lighter models that answer in this one's name, with the digests of their weights."""
    content: ContentRungs | None = None
    """What picks the rung for a picture by its content."""
    schedules: Mapping[str, Schedule] = field(default_factory=dict)
    """DiffRate's schedules by their target: the tokens each block keeps by pruning and by merging."""

    def __post_init__(self) -> None:
        plans = [m.plan for m in self.measurements]
        rungs = self.content.rungs if self.content else ()
        for plan in (*plans, *rungs):
            try:
                parsed = Plan.parse(plan, Plan(self.model, 224))  # whatever full's size is
            except BadPlan as error:
                raise ValueError(error.detail) from None
            if plan in rungs and parsed.content is not None:
                raise ValueError(f"content chooses among plans that leave nothing to it, not {plan}")
        if "full" not in plans or len(set(plans)) < len(plans):
            raise ValueError("the plans of a profile differ, and full is among them")

    @property
    def full(self) -> Measurement:
        return next(m for m in self.measurements if m.plan == "full")

    @property
    def ladder(self) -> tuple[Measurement, ...]:
        """The rungs, cheapest first; the last is full."""
        timed = bool(self.full.latency_s)
        rungs = [m for m in self.measurements if m.rung and m is not self.full]
        return (*sorted(rungs, key=lambda m: _cost(m, timed)), self.full)

    def latency_on(self, setting: Setting) -> "Profile":
        """The profile as far as it holds in another setting: with its latencies, or without them.

        Without, those rungs stay that GFLOPs alone put in the same order.
        """
        if self.setting.differs_from(setting) is None:
            return self
        untimed = [replace(m, latency_s={}) for m in self.measurements]
        return replace(self, measurements=_marked(untimed, [m for m in untimed if m.rung]))

    @classmethod
    def read(cls, text: str, where: str) -> "Profile":
        """The text form back; `where` names the file in the sentence that a SetupError carries."""
        try:
            return TypeAdapter(cls).validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            at = ".".join(str(part) for part in first["loc"])
            raise SetupError(f"{where} is not a readable profile: {at or 'it'}: {first['msg']}") from None

    def text(self) -> str:
        """JSON, which `read` reads back."""
        return json.dumps(asdict(self), indent=1) + "\n"


def choose(measurements: Sequence[Measurement]) -> tuple[Measurement, ...]:
    """The same measurements with the rungs marked: full, and what no other plan beats.

    Cost is seconds a picture in the largest batch that was measured, and GFLOPs where full was not
    timed. A plan is beaten by one of better quality that costs at most TIE more, and by one as good that
    is cheaper; and it is no rung unless it costs less than full by more than TIE.
    """
    return _marked(measurements, measurements)


def worth_timing(measurements: Sequence[Measurement]) -> tuple[Measurement, ...]:
    """Those that may become rungs once they are timed; full is always one.

    The others are matched in quality by a plan for less GFLOPs, by more than SLACK.
    """

    def hopeless(m: Measurement) -> bool:
        return any(o.quality >= m.quality and (1 + SLACK) * o.gflops < m.gflops for o in measurements)

    return tuple(m for m in measurements if m.plan == "full" or not hopeless(m))


def _marked(measurements: Sequence[Measurement], among: Sequence[Measurement]) -> tuple[Measurement, ...]:
    full = next(m for m in measurements if m.plan == "full")
    timed = bool(full.latency_s)
    costs = {m.plan: _cost(m, timed) for m in among}
    below = [m for m in among if (1 + TIE) * costs[m.plan] < _cost(full, timed)]

    def beats(one: Measurement, other: Measurement) -> bool:
        if one.quality == other.quality:
            return (costs[one.plan], one.plan) < (costs[other.plan], other.plan)
        return one.quality > other.quality and costs[one.plan] <= (1 + TIE) * costs[other.plan]

    rungs = {m.plan for m in below if not any(beats(other, m) for other in below)} | {"full"}
    return tuple(replace(m, rung=m.plan in rungs) for m in measurements)


def _cost(m: Measurement, timed: bool) -> float:
    return (m.seconds or float("inf")) if timed else m.gflops
