"""Weights on disk: safetensors with the model's card in their metadata, and never pickle."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from foveate.core.errors import SetupError
from foveate.models.vit.vit import ElasticViT
from foveate.models.weights.config_from_weights import config_from_weights
from foveate.models.zoo import Card

METADATA_KEY = "foveate"


@dataclass(frozen=True, slots=True)
class Checkpoint(Card):
    """A card together with its model: float32, in eval mode, on the CPU."""

    model: ElasticViT = field(kw_only=True)


def attach(card: Card, state: Mapping[str, Tensor], where: str) -> Checkpoint:
    """The card's trunk with these parameters, which are not copied where they are float32 already.

    Raises SetupError, one sentence that starts with `where`, unless every parameter fits.
    """
    with torch.device("meta"):
        model = ElasticViT(card.config, card.exits, card.gates, card.dense, card.clip)
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    wrong = sorted(n for n in expected | found if expected.get(n) != found.get(n))
    if wrong:
        shapes = f"{found.get(wrong[0], 'nothing')} where {expected.get(wrong[0], 'nothing')} fits"
        more = f", and {len(wrong) - 1} more do not fit" if len(wrong) > 1 else ""
        raise SetupError(f"{where} does not fit the trunk: {wrong[0]} is {shapes}{more}")
    coded = next((n for n, value in state.items() if not value.is_floating_point()), None)
    if coded is not None:
        raise SetupError(f"{where} stores {coded} as {state[coded].dtype}, and only floats are read")
    model.load_state_dict({n: v.detach().float() for n, v in state.items()}, assign=True)
    known = {f.name: getattr(card, f.name) for f in fields(Card)}
    return Checkpoint(**known, model=model.eval())


def read(path: Path, card: Card | None = None) -> Checkpoint:
    """A local safetensors file, under `card` or else the card in its metadata.

    A file without either has its geometry inferred from its shapes, which `infer` describes.
    Raises SetupError for a file that is missing, is not safetensors, or does not fit.
    """
    state, metadata = _opened(path)
    card = card or _card(path, metadata)
    if card is None:
        note = "geometry inferred from the shapes of the weights"
        card = Card(variant(path.stem), config_from_weights(state, path.name), description=note)
    return attach(card, state, path.name)


def card_of(path: Path) -> Card | None:
    """The card in a file's metadata; None where there is no such file, or none in it."""
    return _card(path, _metadata(path)) if path.is_file() else None


def _card(path: Path, metadata: Mapping[str, str]) -> Card | None:
    if METADATA_KEY not in metadata:
        return None
    return Card.read(variant(path.stem), _table(metadata[METADATA_KEY], path.name), path.name)


def tensors(path: Path) -> dict[str, Tensor]:
    """What a safetensors file holds. Raises SetupError for a file that is missing, or is none."""
    return _opened(path)[0]


def _opened(path: Path) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    if not path.is_file():
        raise SetupError(f"there is no file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118 -- no mapping
    except (SafetensorError, OSError) as error:
        raise SetupError(f"{path.name} is not a readable safetensors file: {error}") from error


def _metadata(path: Path) -> Mapping[str, str]:
    """Empty for a file that is not safetensors: whoever reads it will say so."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError):
        return {}


def save(path: Path, checkpoint: Checkpoint, half: bool = False) -> None:
    """Write weights and card to one file; `half` stores float16, which `read` turns back into float32.

    Raises SetupError for weights that float16 cannot hold.
    """
    dtype = torch.float16 if half else torch.float32
    state = {n: v.detach().to("cpu", dtype).contiguous() for n, v in checkpoint.model.state_dict().items()}
    lost = next((name for name, value in state.items() if not value.isfinite().all()), None)
    if lost is not None:
        raise SetupError(f"{lost} holds values that {dtype} cannot store")
    save_file(state, path, {METADATA_KEY: json.dumps(checkpoint.table())})
    path.chmod(0o644)  # the library writes for the owner alone


def resize(checkpoint: Checkpoint, image_size: int) -> Checkpoint:
    """The same model for another image size, position embeddings interpolated once and for all."""
    side, rest = divmod(image_size, checkpoint.config.patch_size)
    if rest or side < 1:
        patch = checkpoint.config.patch_size
        raise SetupError(
            f"{checkpoint.name} takes image sizes that are multiples of {patch}, not {image_size}"
        )
    with torch.no_grad():
        state = checkpoint.model.state_dict() | {"pos_embed": checkpoint.model.positions(side)}
    config = replace(checkpoint.config, image_size=image_size)
    return attach(replace(checkpoint, config=config), state, checkpoint.name)


def variant(text: str) -> str:
    """A name that a plan can carry: letters, digits, `_`, `.` and `-`, not starting with a sign."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).lstrip("_.-") or "model"


def _table(text: str, where: str) -> Mapping[str, Any]:
    try:
        table = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise SetupError(f"{where}: its {METADATA_KEY} metadata is not JSON: {error}") from error
    if not isinstance(table, dict):
        raise SetupError(f"{where}: its {METADATA_KEY} metadata is not a card")
    return table
