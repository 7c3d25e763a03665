"""What the JSON file beside the weights states about them, in the format of foveate, timm or transformers."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveate.core.checkpoint_options import CheckpointOptions
from foveate.core.errors import SetupError
from foveate.models.layers.config import ViTConfig
from foveate.models.weights.json_file import read_table
from foveate.models.weights.not_elastic import NotElastic
from foveate.models.weights.options_file import parse_options
from foveate.models.weights.state_dict import stem_of
from foveate.models.weights.timm_format import is_timm_format, timm_values
from foveate.models.weights.transformers_format import is_transformers_format, transformers_values
from foveate.models.weights.transformers_towers import Tower

CONFIG = "config.json"
"""The file with the configuration in the folders of timm and transformers."""


@dataclass(frozen=True, slots=True)
class Description:
    """What is stated about a checkpoint beside its weights."""

    options: CheckpointOptions
    file: str = ""
    """The name of the file; empty where there is none."""
    expected: Mapping[str, int] | None = None
    """Values of the configuration that the weights must show, by name."""
    tower: Tower | None = None
    """What the file of a checkpoint of transformers says about its vision tower."""

    def check(self, config: ViTConfig, stated: CheckpointOptions) -> None:
        """Raise SetupError where the weights show something else than the file says, and NotElastic where
        patches do not tile the images.

        stated: what is used, so that labels from elsewhere are checked too.
        """
        side, patch = stated.image_size or config.image_size, config.patch_size
        if stated.architecture and side % patch and side // patch == config.image_size // patch:
            raise NotElastic(f"patches of {patch} pixels do not tile the {stated.architecture}'s {side}")
        for name, value in (self.expected or {}).items():
            shown = getattr(config, name)
            if name == "classes":
                shown = shown or config.projection  # which timm counts as classes
            if shown != value:
                raise SetupError(
                    f"{self.file} belongs to other weights: it says {name} {value}, and the weights show "
                    f"{shown}"
                )
        labels = stated.labels or ()
        if labels and len(labels) != config.classes:
            where = self.file if stated.labels is self.options.labels else "--labels"
            raise SetupError(
                f"{where} names {len(labels)} labels, and the weights have {config.classes} classes: "
                "name each class once, with --labels or in the JSON file beside the weights"
            )


def file_beside(weights: Path) -> Path | None:
    """The file that describes a weights file; None where there is none."""
    paths = (Path(f"{stem_of(str(weights))}.json"), weights.with_name(CONFIG))
    return next((path for path in paths if path.is_file()), None)


def is_own_format(table: Mapping[str, Any]) -> bool:
    """Whether a JSON object holds options of foveate and nothing else."""
    return table.keys() <= CheckpointOptions.model_fields.keys()


def describe_beside(weights: Path) -> Description:
    """The description of a weights file: NAME.json beside NAME.safetensors, else config.json beside it.

    Raises SetupError, one sentence, for a file that cannot be read or understood.
    """
    path = file_beside(weights)
    if path is None:
        return Description(CheckpointOptions())
    table, where = read_table(path), f"{path.name} beside {weights.name}"
    values: Mapping[str, Any]
    expected: Mapping[str, int] = {}
    tower = None
    if is_timm_format(table) and not is_own_format(table):
        values, expected = timm_values(table, where)
    elif is_transformers_format(table):
        values, tower = transformers_values(table, weights.parent, where)
    else:
        values = own_values(table, where, optional=path.name == CONFIG)
    return Description(parse_options(values, where, path.parent), path.name, expected, tower)


def own_values(table: Mapping[str, Any], where: str, optional: bool) -> Mapping[str, Any]:
    """Foveate's own options. optional: the file may be another tool's, so say what to do about that."""
    if optional and not table.keys() & CheckpointOptions.model_fields.keys():
        entries = ", ".join(sorted(table)[:3]) or "nothing"
        raise SetupError(
            f"{where} is not understood: it holds {entries}, and neither timm's architecture, transformers' "
            "model_type nor options of foveate; move it, or describe the weights in a JSON file of their name"
        )
    return table
