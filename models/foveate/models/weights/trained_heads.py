"""Exit heads, gates and patch readers that were trained for a checkpoint, in a file beside it."""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from foveate.core.errors import SetupError
from foveate.models.heads import ExitSpec
from foveate.models.weights.checkpoint import Checkpoint, attach

log = logging.getLogger(__name__)

EXITS = "exits.safetensors"
"""The name of the file, after the name of the weights and a dot."""


@dataclass(frozen=True, slots=True)
class TrainedHeads:
    """Parts of a model that were trained after its trunk."""

    exits: tuple[ExitSpec, ...] = ()
    gates: tuple[int, ...] = ()
    state: Mapping[str, Tensor] = field(default_factory=dict)
    """Parameters by their names in the model: of the heads, of the gates, of the dense head's readers."""

    def attach(self, checkpoint: Checkpoint, where: str) -> Checkpoint:
        """The checkpoint with these parts. Raises SetupError, one sentence, if they do not fit."""
        card = replace(checkpoint, exits=self.exits or checkpoint.exits, gates=self.gates or checkpoint.gates)
        model = attach(card, checkpoint.model.state_dict() | dict(self.state), where)
        return replace(model, preparation=checkpoint.preparation)


def save_heads(path: Path, heads: TrainedHeads, weights: str) -> None:
    """Write the parts as float16, atomically. weights: the digest of the checkpoint without them.

    Raises SetupError if the file cannot be written.
    """
    state = {name: value.detach().cpu().half().contiguous() for name, value in heads.state.items()}
    specs = {"exits": json.dumps([asdict(spec) for spec in heads.exits]), "gates": json.dumps(heads.gates)}
    temporary = path.with_name(f"{path.name}.writing")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(state, temporary, specs | {"weights": weights})
        temporary.chmod(0o644)
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        raise SetupError(f"cannot write {path}: {error}") from None


def read_heads(path: Path, checkpoint: Checkpoint, weights: str) -> Checkpoint:
    """The checkpoint with the parts in a file, in float32.

    It is the checkpoint alone, with a warning, where the parts were trained for other weights. weights: its
    digest. Raises SetupError for an unreadable file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            exits = tuple(ExitSpec(**spec) for spec in json.loads(metadata["exits"]))
            gates = tuple(json.loads(metadata["gates"]))
            state = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 -- not a mapping
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise SetupError(f"{path.name} is not a readable file of trained exits: {error}") from error
    if metadata.get("weights") != weights:
        log.warning(
            "%s was trained for other weights than %s has, and is ignored: train it again with "
            "foveate train-exits, or remove it",
            path,
            checkpoint.name,
        )
        return checkpoint
    return TrainedHeads(exits, gates, state).attach(checkpoint, path.name)
