"""A plan: the frozen, parseable value that decides how much compute a request gets."""

import re
from dataclasses import dataclass
from typing import Literal, TypedDict, get_args

from foveate.core.errors import BadPlan

Precision = Literal["fp32", "bf16", "fp16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

MAX_TEXT = 200
"""Characters in the text form at most."""
_HEAD = re.compile(r"(?P<variant>[A-Za-z0-9][A-Za-z0-9_.-]*)@(?P<size>[1-9][0-9]{1,3})")
_VARIANT = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")
_SIZED = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*@-?[0-9]+")
"""A variant and a size, in range or not."""
_NUMBER = re.compile(r"-?[0-9]*\.?[0-9]+")
_PART = re.compile(r"[a-z][a-z0-9_]*(:[A-Za-z0-9_.,@-]+)*")


@dataclass(frozen=True, slots=True)
class Plan:
    """One operating point of one model.

    The text form is ``variant@size[/part]*/precision``, for example
    ``vit-t@224/evit:0.7/exit:0.9/bf16``. ``str(plan)`` is canonical and ``Plan.parse`` reads it back. It
    leaves out parts that spend full compute. Raises BadPlan for values that have no text form.
    """

    variant: str
    """Name of the model, or of one of its siblings."""
    image_size: int
    """Side of the square input, in pixels."""
    precision: Precision = "fp32"
    reducer: str = "none"
    """Name of a token reducer and its arguments, as in ``evit:0.7``."""
    depth: int | None = None
    """Number of blocks that are run; None runs all."""
    exit: str | None = None
    """Argument of the exit rule, as in ``0.9``; None disables early exits."""
    heads: int | None = None
    """Attention heads that each token uses in every block; None uses all."""
    stitch: str | None = None
    """Name of the stitch at which a sibling's blocks continue the forward; None for a single network."""
    content: str | None = None
    """Probability, in 0..1, with which a cheaper rung must suffice for an image to run under it; None runs
    all images alike."""
    frames: int | None = None
    """Number of evenly spaced frames of a clip that are used; None uses all sampled frames."""
    glance: str | None = None
    """Number of frames that are run in full after a cheap first pass over all frames, as in ``4``, and the
    share of their patches that is kept, as in ``4:0.5``. None runs all frames in full."""
    reuse: str | None = None
    """Share of a frame's patches that are computed, as in ``0.4``: those that changed most. The others keep
    their last computed value. None computes all patches."""

    def __post_init__(self) -> None:
        if not _HEAD.fullmatch(f"{self.variant}@{self.image_size}"):
            raise _bad_head(f"{self.variant}@{self.image_size}")
        if self.precision not in PRECISIONS:
            raise BadPlan(f"precision must be one of {', '.join(PRECISIONS)}, not {self.precision!r}")
        if not _PART.fullmatch(self.reducer) or self.reducer.partition(":")[0] in _KINDS:
            raise BadPlan(f"{_short(self.reducer)!r} is not the name of a token reducer")
        for kind in _TEXTS:
            argument = getattr(self, kind)
            if argument is not None and not _PART.fullmatch(f"{kind}:{argument}"):
                raise BadPlan(f"{_short(argument)!r} is not a valid argument of {kind}")
        for kind in _NUMBERS:
            number = getattr(self, kind)
            if number is not None and number < 1:
                raise BadPlan(f"{kind} must be at least 1, not {number}")

    @classmethod
    def parse(cls, text: str, base: "Plan | None" = None) -> "Plan":
        """Parse the text form. Raises BadPlan for any other text.

        With a `base`, the model, size and precision are optional and default to those of the base:
        ``evit:0.5`` is a plan, and ``full`` is the base without any reduction. The base's variant may stand
        first without a size, as in ``vit-t-chat/pool:49``.
        """
        if len(text) > MAX_TEXT:
            raise BadPlan(f"a plan has at most {MAX_TEXT} characters, not {len(text)}")
        first, *parts = text.strip().split("/")
        match = _HEAD.fullmatch(first)
        if match is not None:
            variant, size = match["variant"], int(match["size"])
        elif base is not None and "@" not in first.partition(":")[0]:
            variant, size = base.variant, base.image_size
            if _VARIANT.fullmatch(first) and not _PART.fullmatch(first) and first != base.variant:
                raise BadPlan(
                    f"{_short(first)!r} is no plan part such as full, and the model is {base.variant}"
                )
            parts = parts if first in ("full", base.variant) else [first, *parts]
        else:
            raise _bad_head(first)
        return cls(variant, size, **_parse_parts(parts, base.precision if base else "fp32"))

    @property
    def parts(self) -> str:
        """All parts but variant, size and precision in the text form; ``full`` where there are none."""
        parts = [self.reducer] if self.reducer != "none" else []
        for kind in _KINDS:
            value = getattr(self, kind)
            if value is not None:
                parts.append(f"{kind}:{value}")
        return "/".join(parts) or "full"

    def relative_to(self, full: "Plan") -> str:
        """The text form without all that equals the full plan, short enough for a metric label."""
        if (self.variant, self.image_size) == (full.variant, full.image_size):
            return self.parts
        return f"{self.variant}@{self.image_size}" + ("" if self.parts == "full" else f"/{self.parts}")

    def __str__(self) -> str:
        parts = [] if self.parts == "full" else [self.parts]
        return "/".join([f"{self.variant}@{self.image_size}", *parts, self.precision])


_TEXTS = ("content", "stitch", "exit", "glance", "reuse")
_NUMBERS = ("frames", "heads", "depth")
_KINDS = ("content", "stitch", "frames", "glance", "reuse", "heads", "depth", "exit")
"""Names of plan parts. A part with any other name is a token reducer."""


class _Parts(TypedDict, total=False):
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


def _parse_parts(parts: list[str], precision: Precision) -> _Parts:
    parsed: _Parts = {"precision": precision}
    kinds: set[str] = set()
    for part in parts:
        if not _PART.fullmatch(part):
            raise BadPlan(f"{_short(part)!r} is not a valid plan part")
        name, _, argument = part.partition(":")
        argument = ":".join(_canonical(number) for number in argument.split(":"))
        kind = "precision" if part in PRECISIONS else name if name in _KINDS else "reducer"
        if kind in kinds:
            raise BadPlan(f"a plan has at most one {kind}; remove {_short(part)!r}")
        kinds.add(kind)
        match kind:
            case "precision":
                parsed["precision"] = next(p for p in PRECISIONS if p == part)
            case "depth" | "heads" | "frames":
                parsed[kind] = _whole(kind, argument)
            case "exit" | "stitch" | "content" | "glance" | "reuse":
                parsed[kind] = argument
            case _:
                parsed["reducer"] = f"{name}:{argument}" if argument else name
    return parsed


def _bad_head(text: str) -> BadPlan:
    """The error for a plan that begins with this text."""
    if _SIZED.fullmatch(text):
        return BadPlan(
            f"the size in a plan is a number from 10 to 9999, as in vit-t@224, not {_short(text)!r}"
        )
    return BadPlan(f"a plan must start with variant@size, as in vit-t@224, not {_short(text)!r}")


def _canonical(argument: str) -> str:
    """One spelling of each number, so that ``evit:.5`` and ``evit:0.50`` are the same plan.

    Works on the text: a float would round some numbers and print others like ``1e+06``.
    """
    if not _NUMBER.fullmatch(argument):
        return argument
    whole, _, fraction = argument.removeprefix("-").partition(".")
    whole, fraction = whole.lstrip("0") or "0", fraction.rstrip("0")
    number = f"{whole}.{fraction}" if fraction else whole
    return f"-{number}" if argument.startswith("-") and number != "0" else number


def _whole(kind: str, argument: str) -> int:
    if not argument.isdecimal() or len(argument) > 4:
        raise BadPlan(f"{kind} must be a whole number, not {_short(argument)!r}")
    return int(argument)


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."


def sampled_frames(total: int, count: int) -> list[int]:
    """Numbers of `count` evenly spaced frames out of `total`: those in the middle of equal parts."""
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]
