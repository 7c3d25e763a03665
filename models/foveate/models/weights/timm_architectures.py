"""What the weights of timm's plain vision transformers do not show, by timm's name.

timm_architectures.json beside this file holds it, so that a folder in timm's format is served without timm.
A test compares the file with timm itself.
"""

import json
from collections import Counter
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from foveate.core.checkpoint_options import NOTHING_STATED, Activation, CheckpointOptions, Pool
from foveate.core.errors import SetupError
from foveate.models.layers.config import ViTConfig
from foveate.models.weights.not_elastic import NotElastic


@dataclass(frozen=True, slots=True)
class TimmArchitecture:
    """The shape of a timm model, as far as its weights leave it open, and what tells such models apart."""

    width: int
    depth: int
    heads: int
    eps: float
    activation: Activation
    pool: Pool


def architecture(name: str) -> TimmArchitecture | None:
    """The architecture of this name without tag; None for one that is no plain ViT of timm."""
    return _table().get(name)


@dataclass(frozen=True, slots=True)
class StatedShape:
    """What a stated architecture says about weights."""

    options: CheckpointOptions = NOTHING_STATED
    """What the weights do not show."""
    known: TimmArchitecture | None = None
    name: str = ""

    def check(self, config: ViTConfig, where: str) -> None:
        """Raise SetupError, which starts with `where`, if the weights have another width or depth."""
        known = self.known
        if known is not None and (config.width, config.depth) != (known.width, known.depth):
            raise SetupError(
                f"{where} is no {self.name}: it has width {config.width} and depth {config.depth}, and "
                f"timm has width {known.width} and depth {known.depth}"
            )


def stated_shape(name: str | None) -> StatedShape:
    """What the architecture of this name says about weights; nothing for None. A tag is ignored.

    Raises NotElastic for an architecture that is no plain ViT of timm.
    """
    if name is None:
        return StatedShape()
    known = architecture(name.removeprefix("timm/").partition(".")[0])
    if known is None:
        raise NotElastic(f"{name} is no plain vision transformer of timm")
    options = CheckpointOptions(
        heads=known.heads, eps=known.eps, activation=known.activation, pool=known.pool
    )
    return StatedShape(options, known, name)


def architectures() -> tuple[str, ...]:
    """The names of all architectures, sorted."""
    return tuple(sorted(_table()))


def usual_heads(width: int, depth: int) -> int | None:
    """The heads of most timm models of this width and depth; None where there is no such model."""
    same = (each for each in _table().values() if (each.width, each.depth) == (width, depth))
    counts = Counter(each.heads for each in same).most_common(1)
    return counts[0][0] if counts else None


@cache
def _table() -> dict[str, TimmArchitecture]:
    text = (files(__package__) / "timm_architectures.json").read_text("utf-8")
    rows: list[dict[str, Any]] = json.loads(text)
    return {name: TimmArchitecture(**row) for row in rows for name in row.pop("names")}
