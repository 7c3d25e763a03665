"""Find the text tower of a checkpoint whose vision tower runs in the elastic trunk."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foveate.core.errors import SetupError
from foveate.models.huggingface.text_runner import TextRunner
from foveate.models.huggingface.text_tower import load_text_tower
from foveate.models.weights import transformers_hub
from foveate.models.weights.checkpoint import Checkpoint
from foveate.models.weights.description import CONFIG
from foveate.models.weights.json_file import read_table
from foveate.models.weights.local_files import PREFIX, is_local, weights_path


def text_runner(name: str, checkpoint: Checkpoint, device: str, max_batch: int) -> TextRunner | None:
    """The runner of the text tower beside a model of embeddings; None for a model without one.

    name: as the model was loaded by. max_batch: 0 for the device's default.
    """
    if checkpoint.task != "embed":
        return None
    described = _configuration(name.removeprefix(PREFIX))
    tower = None if described is None else load_text_tower(*described)
    if tower is None:
        return None
    return TextRunner(tower, checkpoint.name, checkpoint.licence, device, max_batch)


def _configuration(name: str) -> tuple[str, Mapping[str, Any]] | None:
    """What transformers calls the checkpoint, a folder or `org/name`, and its config.json; None without."""
    if is_local(name):
        source = folder = weights_path(name).parent
    elif transformers_hub.is_trunk_repository(name):
        source, folder = Path(name), transformers_hub.fetch_weights(name).parent
    else:
        return None
    try:
        return str(source), read_table(folder / CONFIG)
    except SetupError:
        return None
