"""What the weights of timm's vision transformers do not show, by timm's name.

timm_architectures.json beside this file holds it, so that a folder in timm's format is served without timm.
A test compares the file with timm itself.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from importlib.resources import files
from typing import Any

from foveate.core.checkpoint_options import Activation, Pool
from foveate.core.nearest_names import did_you_mean
from foveate.models.layers.config import ViTConfig
from foveate.models.weights.not_elastic import NotElastic

ON_HUB = ("hf-hub:", "hf_hub:")
"""What timm's names of repositories begin with."""
ORGANISATION = "timm/"
"""The repositories on the hub that bear the names of timm's models with tags."""
_UNSEEN = ("pool_heads", "pool_prefix")
"""Fields of ViTConfig, beside those of rotary positions, that weights do not show and few models set."""


@dataclass(frozen=True, slots=True)
class TimmArchitecture:
    """The shape of a timm model, as far as its weights leave it open, and what tells such models apart."""

    width: int
    depth: int
    heads: int
    eps: float
    activation: Activation
    pool: Pool
    projection: int = 0
    """Width of the embedding that weights of this model give where timm publishes it as an image tower."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of ViTConfig that the weights do not show, where they are not the defaults."""


def unseen_fields(config: ViTConfig) -> dict[str, Any]:
    """`TimmArchitecture.config` of a configuration.

    The image size is among them for a model without position embeddings, which show it otherwise.
    """
    names = [f.name for f in fields(config) if f.name.startswith("rope") or f.name in _UNSEEN]
    defaults = ViTConfig()
    values = {n: getattr(config, n) for n in names if getattr(config, n) != getattr(defaults, n)}
    return values if config.pos_embed else {"image_size": config.image_size} | values


def architecture(name: str) -> TimmArchitecture | None:
    """The architecture of this name without tag; None for one that the trunk does not run."""
    return _table().get(name)


def model_name(name: str) -> str:
    """timm's name of a model without the organisation: `timm/resnet18.a1_in1k` -> `resnet18.a1_in1k`.

    Other repositories on the hub (`hf-hub:owner/model`) keep their name.
    """
    return name.removeprefix(ORGANISATION)


def architecture_name(name: str) -> str:
    """As `model_name`, also for a repository: `hf-hub:timm/resnet18.a1_in1k` -> `resnet18.a1_in1k`."""
    return model_name(name.removeprefix(next(filter(name.startswith, ON_HUB), "")))


def stated_architecture(name: str | None) -> TimmArchitecture | None:
    """The architecture that a user states, with a tag or without; None for none.

    Raises NotElastic for a name that is not in the table.
    """
    if name is None:
        return None
    known = architecture(architecture_name(name).partition(".")[0])
    if known is None:
        hint = did_you_mean(name, architectures())
        raise NotElastic(f"{name!r} is not one of timm's architectures that the trunk runs{hint}")
    return known


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
