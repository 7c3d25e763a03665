"""A plan: the frozen, parseable value that says how much compute a request gets."""

import re
from dataclasses import dataclass
from typing import Literal, TypedDict, get_args

from foveate.core.errors import BadPlan

Precision = Literal["fp32", "bf16", "fp16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

MAX_TEXT = 200
_HEAD = re.compile(r"(?P<variant>[A-Za-z0-9][A-Za-z0-9_.-]*)@(?P<size>[1-9][0-9]{1,3})")
_NUMBER = re.compile(r"[0-9]*\.?[0-9]+")
_STEP = re.compile(r"[a-z][a-z0-9_]*(:[A-Za-z0-9_.,@-]+)*")


@dataclass(frozen=True, slots=True)
class Plan:
    """One operating point of one model.

    The text form is ``variant@size[/part]*/precision``, for example
    ``vit-t@224/evit:0.7/exit:0.9/bf16``. ``str(plan)`` is canonical and ``Plan.parse`` reads it back;
    parts that spend full compute are left out of it.
    """

    variant: str
    image_size: int
    """Side of the square input, in pixels."""
    precision: Precision = "fp32"
    reducer: str = "none"
    """Name of a token reducer and its argument, as in ``evit:0.7``."""
    depth: int | None = None
    """Blocks after which every sample leaves; None runs them all."""
    exit: str | None = None
    """Argument of the exit rule, as in ``0.9``; None never exits early."""
    heads: int | None = None
    """Attention heads that each token uses of every block's; None: all."""
    stitch: str | None = None
    """Where the work passes between this variant and a sibling; None: nowhere."""
    content: str | None = None
    """How sure it must be, in 0..1, that a cheaper rung suffices for a picture; None: all run alike."""
    frames: int | None = None
    """Frames of a clip that are looked at, evenly spread over it; None: all that were read."""
    glance: str | None = None
    """How many of them are looked at closely, as in ``4``, and what share of their patches, as in ``4:0.5``,
    after a cheap glance at them all; None: all, and all of them."""
    reuse: str | None = None
    """Share of a frame's patches that are computed, as in ``0.4``: those that changed most. The others stay
    as they were when they last were. None: all."""

    def __post_init__(self) -> None:
        if not _HEAD.fullmatch(f"{self.variant}@{self.image_size}"):
            raise BadPlan(f"a plan starts with variant@size, not {self.variant}@{self.image_size}")
        if self.precision not in PRECISIONS:
            raise BadPlan(f"precision must be one of {', '.join(PRECISIONS)}, not {self.precision!r}")
        if not _STEP.fullmatch(self.reducer) or self.reducer.partition(":")[0] in _KINDS:
            raise BadPlan(f"{_short(self.reducer)!r} does not name a token reducer")
        for kind in _TEXTS:
            argument = getattr(self, kind)
            if argument is not None and not _STEP.fullmatch(f"{kind}:{argument}"):
                raise BadPlan(f"{kind} takes an argument, not {_short(argument)!r}")
        for kind in _NUMBERS:
            number = getattr(self, kind)
            if number is not None and number < 1:
                raise BadPlan(f"{kind} must be at least 1, not {number}")

    @classmethod
    def parse(cls, text: str, base: "Plan | None" = None) -> "Plan":
        """Read the text form back. Raises BadPlan with one sentence when it is not a plan.

        With a `base`, the parts that say which model, size and precision may be left out and are the
        base's: ``evit:0.5`` is a plan, and ``full`` is the base without any reduction.
        """
        if len(text) > MAX_TEXT:
            raise BadPlan(f"a plan is at most {MAX_TEXT} characters long")
        first, *steps = text.strip().split("/")
        match = _HEAD.fullmatch(first)
        if match is not None:
            variant, size = match["variant"], int(match["size"])
        elif base is not None and "@" not in first.partition(":")[0]:
            variant, size = base.variant, base.image_size
            steps = steps if first == "full" else [first, *steps]
        else:
            raise BadPlan(f"a plan starts with variant@size, as in vit-t@224; got {_short(first)!r}")
        return cls(variant, size, **_parse_steps(steps, base.precision if base else "fp32"))

    @property
    def steps(self) -> str:
        """What the plan does to its variant, or ``full`` where it does nothing."""
        parts = [self.reducer] if self.reducer != "none" else []
        for kind in _KINDS:
            value = getattr(self, kind)
            if value is not None:
                parts.append(f"{kind}:{value}")
        return "/".join(parts) or "full"

    def relative_to(self, full: "Plan") -> str:
        """What sets this plan apart from full, in a form short enough for a metric label."""
        if (self.variant, self.image_size) == (full.variant, full.image_size):
            return self.steps
        return f"{self.variant}@{self.image_size}" + ("" if self.steps == "full" else f"/{self.steps}")

    def __str__(self) -> str:
        steps = [] if self.steps == "full" else [self.steps]
        return "/".join([f"{self.variant}@{self.image_size}", *steps, self.precision])


_TEXTS = ("content", "stitch", "exit", "glance", "reuse")
_NUMBERS = ("frames", "heads", "depth")
_KINDS = ("content", "stitch", "frames", "glance", "reuse", "heads", "depth", "exit")
"""Parts of a plan that go by their own name; any other part is a token reducer's."""


class _Steps(TypedDict, total=False):
    precision: Precision
    reducer: str
    depth: int
    exit: str
    heads: int
    stitch: str
    content: str
    frames: int
    glance: str
    reuse: str


def _parse_steps(steps: list[str], precision: Precision) -> _Steps:
    parsed: _Steps = {"precision": precision}
    seen: set[str] = set()
    for step in steps:
        if not _STEP.fullmatch(step):
            raise BadPlan(f"{_short(step)!r} is not a part of a plan")
        name, _, argument = step.partition(":")
        argument = ":".join(_canonical(part) for part in argument.split(":"))
        kind = "precision" if step in PRECISIONS else name if name in _KINDS else "reducer"
        if kind in seen:
            raise BadPlan(f"a plan has at most one {kind}; {_short(step)!r} is a second one")
        seen.add(kind)
        match kind:
            case "precision":
                parsed["precision"] = next(p for p in PRECISIONS if p == step)
            case "depth" | "heads" | "frames":
                parsed[kind] = _whole(kind, argument)
            case "exit" | "stitch" | "content" | "glance" | "reuse":
                parsed[kind] = argument
            case _:
                parsed["reducer"] = f"{name}:{argument}" if argument else name
    return parsed


def _canonical(argument: str) -> str:
    """One spelling for one number, so that ``evit:.5`` and ``evit:0.50`` are the same plan.

    Done on the text, for a float would round some numbers and spell others as in ``1e+06``.
    """
    if not _NUMBER.fullmatch(argument):
        return argument
    whole, _, fraction = argument.partition(".")
    whole, fraction = whole.lstrip("0") or "0", fraction.rstrip("0")
    return f"{whole}.{fraction}" if fraction else whole


def _whole(kind: str, argument: str) -> int:
    if not argument.isdecimal() or len(argument) > 4:
        raise BadPlan(f"{kind} takes a whole number, not {_short(argument)!r}")
    return int(argument)


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."


def picked(total: int, count: int) -> list[int]:
    """The frames that a plan of `count` looks at, of `total`: those in the middle of equal spans."""
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]
