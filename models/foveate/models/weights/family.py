"""A model and its siblings: lighter models that answer under its name."""

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
"""The name of the file with a family's stitches, after the full model's name and a dot."""


@dataclass(frozen=True, slots=True)
class Family:
    """A full model, its siblings and its trained extras.

    Raises SetupError for a sibling with another preprocessing or other classes, for one of a model that
    makes embeddings, and for equal names.
    """

    own: Checkpoint
    """The full model. Its full plan is the family's."""
    siblings: tuple[Checkpoint, ...] = ()
    stitches: Mapping[StitchSpec, nn.Linear] = field(default_factory=dict)
    """Trained linear maps between members. Stitches of models outside the family are ignored."""
    clicks: PointPromptHead | None = None
    """The head that answers clicks from the full model's features; None: clicks are not served."""

    def __post_init__(self) -> None:
        if len({member.name for member in self.members}) < len(self.members):
            raise SetupError(f"two members of the family of {self.own.name} have the same name")
        if self.siblings and self.own.task == "embed":
            raise SetupError(
                f"{self.siblings[0].name} cannot answer for {self.own.name}: "
                "embeddings of two models cannot be compared with each other"
            )
        for sibling in self.siblings:
            for field_name in ("labels", "input", "mean", "std"):
                if getattr(sibling, field_name) != getattr(self.own, field_name):
                    raise SetupError(
                        f"{sibling.name} cannot answer for {self.own.name}: their {field_name} differ"
                    )
            if sibling.config.classes != self.own.config.classes:
                raise SetupError(
                    f"{sibling.name} cannot answer for {self.own.name}: their numbers of classes differ"
                )

    @property
    def members(self) -> tuple[Checkpoint, ...]:
        """All models of the family, the full model first."""
        return (self.own, *self.siblings)


def save_stitches(path: Path, joints: Mapping[StitchSpec, nn.Linear]) -> None:
    """Write stitches as float16. Their specs become the file's metadata."""
    state = {}
    for index, joint in enumerate(joints.values()):
        for name, value in joint.state_dict().items():
            state[f"{index}.{name}"] = value.half().contiguous()
    save_file(state, path, {"stitches": json.dumps([asdict(spec) for spec in joints])})
    path.chmod(0o644)


def read_stitches(path: Path) -> dict[StitchSpec, nn.Linear]:
    """Read stitches in float32. Raises SetupError for an unreadable file."""
    try:
        with safe_open(path, framework="pt") as file:
            specs = [StitchSpec(**table) for table in json.loads((file.metadata() or {})["stitches"])]
            state = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 -- not a mapping
    except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise SetupError(f"{path.name} is not a readable file of stitches: {error}") from error
    joints = {}
    for index, spec in enumerate(specs):
        weight = state[f"{index}.weight"]
        with torch.device("meta"):
            joint = nn.Linear(weight.shape[1], weight.shape[0])
        joint.load_state_dict({"weight": weight, "bias": state[f"{index}.bias"]}, assign=True)
        joints[spec] = joint
    return joints
