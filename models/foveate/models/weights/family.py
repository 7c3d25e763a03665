"""A model together with its lighter siblings: variants that answer in its name."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from foveate.core.errors import SetupError
from foveate.models.heads.point_prompts import PointPromptHead
from foveate.models.vit.stitch import StitchSpec
from foveate.models.weights.checkpoint import Checkpoint

STITCHES = "stitches.safetensors"
"""What the file with a family's stitches is called, after the name of its full model and a dot."""


@dataclass(frozen=True, slots=True)
class Family:
    """Raises SetupError for a sibling that would read pictures, or name classes, in another way, and
    for two of one name."""

    own: Checkpoint
    """The model whose full plan is the family's."""
    siblings: tuple[Checkpoint, ...] = ()
    stitches: Mapping[StitchSpec, nn.Linear] = field(default_factory=dict)
    """Trained maps between members; a stitch of one that is not here is left out."""
    clicks: PointPromptHead | None = None
    """Answers clicks on what the full model has seen."""

    def __post_init__(self) -> None:
        if len({member.name for member in self.members}) < len(self.members):
            raise SetupError(f"two members of the family of {self.own.name} go by the same name")
        for sibling in self.siblings:
            for what in ("labels", "input", "mean", "std"):
                if getattr(sibling, what) != getattr(self.own, what):
                    raise SetupError(f"{sibling.name} cannot answer for {self.own.name}: their {what} differ")
            if sibling.config.classes != self.own.config.classes:
                raise SetupError(f"{sibling.name} has other classes than {self.own.name}")

    @property
    def members(self) -> tuple[Checkpoint, ...]:
        return (self.own, *self.siblings)


def save_stitches(path: Path, joints: Mapping[StitchSpec, nn.Linear]) -> None:
    """Write the maps as float16, with what they join in the metadata."""
    state = {}
    for index, joint in enumerate(joints.values()):
        for name, value in joint.state_dict().items():
            state[f"{index}.{name}"] = value.half().contiguous()
    save_file(state, path, {"stitches": json.dumps([asdict(spec) for spec in joints])})
    path.chmod(0o644)


def read_stitches(path: Path) -> dict[StitchSpec, nn.Linear]:
    """The maps of a family's file, in float32. Raises SetupError for a file that is none."""
    try:
        with safe_open(path, framework="pt") as file:
            specs = [StitchSpec(**table) for table in json.loads((file.metadata() or {})["stitches"])]
            state = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 -- not a mapping
    except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise SetupError(f"{path.name} is not a readable file of stitches: {error}") from error
    found = {}
    for index, spec in enumerate(specs):
        weight = state[f"{index}.weight"]
        with torch.device("meta"):
            joint = nn.Linear(weight.shape[1], weight.shape[0])
        joint.load_state_dict({"weight": weight, "bias": state[f"{index}.bias"]}, assign=True)
        found[spec] = joint
    return found
