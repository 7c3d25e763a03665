"""Checkpoints on disk: weights, with the model's card in the metadata of a safetensors file or without."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from foveate.core.checkpoint_options import NOTHING_STATED, CheckpointOptions
from foveate.core.errors import SetupError
from foveate.models.vit.vit import ElasticViT
from foveate.models.weights.description import CONFIG, describe_beside
from foveate.models.weights.eva_names import trunk_names
from foveate.models.weights.inferred_card import guessed_card, infer_card, preparation_text, with_options
from foveate.models.weights.options_file import with_labels_read
from foveate.models.weights.parameter_names import timm_names
from foveate.models.weights.state_dict import check_tensors, read_metadata, read_state, stem_of
from foveate.models.weights.timm_architectures import stated_architecture
from foveate.models.weights.transformers_towers import Tower
from foveate.models.zoo import MAX_NAME, CheckpointCard

METADATA_KEY = "foveate"
"""The safetensors metadata entry that holds the card, as JSON."""
GENERIC = ("model.safetensors", "pytorch_model.bin")
"""The names that timm and transformers give to the weights of every model."""


@dataclass(frozen=True, slots=True)
class Checkpoint(CheckpointCard):
    """A card and its model: float32, in eval mode, on the CPU."""

    model: ElasticViT = field(kw_only=True)
    preparation: str = field(default="", kw_only=True)
    """What is stated about the weights and differs from the guess, or from the card in the file, as text; a
    part of their digest."""


def attach(card: CheckpointCard, state: Mapping[str, Tensor], where: str) -> Checkpoint:
    """Build the card's model with these parameters. Parameters that are float32 already are not copied.

    Raises SetupError, one sentence that starts with `where`, unless every parameter fits.
    """
    with torch.device("meta"):
        model = ElasticViT(card.config, card.exits, card.gates, card.dense, card.clip)
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    actual = {name: tuple(value.shape) for name, value in state.items()}
    wrong = sorted(n for n in expected | actual if expected.get(n) != actual.get(n))
    if wrong:
        shapes = f"{actual.get(wrong[0], 'nothing')} where {expected.get(wrong[0], 'nothing')} fits"
        more = f", and {len(wrong) - 1} more do not fit" if len(wrong) > 1 else ""
        raise SetupError(f"{where} does not fit the trunk: {wrong[0]} is {shapes}{more}")
    model.load_state_dict({n: v.detach().float() for n, v in state.items()}, assign=True)
    values = {f.name: getattr(card, f.name) for f in fields(CheckpointCard)}
    return Checkpoint(**values, model=model.eval())


def read(
    path: Path, card: CheckpointCard | None = None, options: CheckpointOptions = NOTHING_STATED
) -> Checkpoint:
    """Read a local file of weights. Its card is `card`, or else the one in its metadata.

    Without either, the configuration is that of the JSON file beside the weights, and what it leaves open is
    inferred from the weights, as `config_from_weights` describes. A warning names each guess. `options` come
    before all of these. Raises SetupError for a file that is missing, is not readable, or does not fit, and
    NotElastic for weights of another stated architecture.
    """
    if card is not None:
        return attach(card, tensors(path), path.name)
    own, stated = _card(path, read_metadata(path)), with_labels_read(options)
    if own is None:
        return _read_without_card(path, stated)
    state = _network_state(path, stated.prefix)
    return _attach_stated(with_options(own, stated), own, state, stated, path)


def _read_without_card(path: Path, options: CheckpointOptions) -> Checkpoint:
    """The checkpoint of weights that do not describe themselves."""
    beside = describe_beside(path)
    stated, tower = options.over(beside.options), beside.tower
    stated_architecture(stated.architecture)  # before the weights of another network are read
    state, config = _network_state(path, stated.prefix, tower), None
    default = guessed_card(name_of(path), state)
    if tower is not None:
        config, state = tower.fit(state, stated.image_size or tower.config.image_size)
        stated = stated.over(CheckpointOptions(labels=tower.label_names(config.classes)))
    card = infer_card(name_of(path), path, state, stated, beside, config)
    return _attach_stated(card, default, state, stated, path)


def _attach_stated(
    card: CheckpointCard,
    default: CheckpointCard | None,
    state: Mapping[str, Tensor],
    stated: CheckpointOptions,
    path: Path,
) -> Checkpoint:
    """The checkpoint of a card to which `stated` is applied, and which was `default` without it."""
    checkpoint = attach(card, trunk_names(state), path.name)
    checkpoint = replace(checkpoint, preparation=preparation_text(card, default))
    return resize(checkpoint, stated.image_size or card.config.image_size)


def _network_state(path: Path, prefix: str | None, tower: Tower | None = None) -> dict[str, Tensor]:
    """The parameters of the network in a file, checked, under timm's names. tower: the network, where a
    configuration of transformers describes it."""
    state, _ = read_state(path, prefix, tower.uses) if tower else read_state(path, prefix)
    if tower is not None and prefix is None:
        state = tower.plain_names(state)
    state = timm_names(state, path.name, prefix)
    check_tensors(state, path.name)
    return state


def name_of(path: Path) -> str:
    """The name of a file's model: the file's; that of its folder for the files of timm and transformers."""
    generic = path.name in GENERIC and (path.parent / CONFIG).is_file()
    return variant(path.parent.resolve().name if generic else stem_of(path.name))[:MAX_NAME]


def card_of(path: Path) -> CheckpointCard | None:
    """The card in a file's metadata. None where the file is missing or holds no card."""
    return _card(path, read_metadata(path)) if path.is_file() else None


def _card(path: Path, metadata: Mapping[str, str]) -> CheckpointCard | None:
    if METADATA_KEY not in metadata:
        return None
    return CheckpointCard.read(variant(path.stem), _table(metadata[METADATA_KEY], path.name), path.name)


def tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name. Raises SetupError for a missing, unreadable or damaged file."""
    state, _ = read_state(path)
    check_tensors(state, path.name)
    return state


def save(path: Path, checkpoint: Checkpoint, half: bool = False) -> None:
    """Write weights and card to one file. half: store float16, which `read` converts back to float32.

    Raises SetupError for weights that the stored type cannot hold.
    """
    dtype = torch.float16 if half else torch.float32
    state = {n: v.detach().to("cpu", dtype).contiguous() for n, v in checkpoint.model.state_dict().items()}
    not_finite = next((name for name, value in state.items() if not value.isfinite().all()), None)
    if not_finite is not None:
        raise SetupError(f"{not_finite} holds values that {dtype} cannot store")
    save_file(state, path, {METADATA_KEY: json.dumps(checkpoint.table())})
    path.chmod(0o644)  # the library creates files that only their owner can read


def resize(checkpoint: Checkpoint, image_size: int) -> Checkpoint:
    """The same model for another image size in pixels, with interpolated position embeddings.

    Raises SetupError unless the size is a multiple of the patch size.
    """
    if image_size == checkpoint.config.image_size:
        return checkpoint
    side, rest = divmod(image_size, checkpoint.config.patch_size)
    if rest or side < 1:
        patch = checkpoint.config.patch_size
        raise SetupError(
            f"{checkpoint.name} takes image sizes that are multiples of {patch}, not {image_size}"
        )
    state = checkpoint.model.state_dict()
    if checkpoint.config.pos_embed:
        with torch.no_grad():
            state |= {"pos_embed": checkpoint.model.positions(side)}
    config = replace(checkpoint.config, image_size=image_size)
    resized = attach(replace(checkpoint, config=config), state, checkpoint.name)
    return replace(resized, preparation=checkpoint.preparation)


def variant(text: str) -> str:
    """A text as a name for plans: letters, digits, `_`, `.` and `-`, with a letter or digit first."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).lstrip("_.-") or "model"


def _table(text: str, where: str) -> Mapping[str, Any]:
    """The metadata entry's JSON object."""
    try:
        table = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise SetupError(f"{where}: its {METADATA_KEY} metadata is not JSON: {error}") from error
    if not isinstance(table, dict):
        raise SetupError(f"{where}: its {METADATA_KEY} metadata is not a card")
    return table
