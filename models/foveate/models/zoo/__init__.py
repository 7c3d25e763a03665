"""The models shipped with this package: their cards, weights and profiles."""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

from foveate.core.errors import SetupError
from foveate.core.profile import Profile
from foveate.models.heads.clip import ClipSpec
from foveate.models.heads.dense import DenseSpec
from foveate.models.zoo.checkpoint_card import MAX_NAME, CheckpointCard
from foveate.models.zoo.tables import RGB, parse_record

__all__ = [
    "MAX_NAME",
    "RGB",
    "CheckpointCard",
    "agreements",
    "card",
    "chat_names",
    "names",
    "profile",
    "shipped",
]

AGREEMENTS = "agreements.json"
"""The file with the agreements of shipped weights, by digest."""
TOKENIZER = "tokenizer.json"
"""The end of the name of the file that a vision-language model has beside its card."""


def shipped() -> Traversable:
    """The folder of this package. A model is NAME.toml and NAME.safetensors."""
    return files(__name__)


def names(folder: Traversable | None = None) -> tuple[str, ...]:
    """The vision models with a card in a folder (None: the shipped ones), sorted."""
    return _names(folder, chat=False)


def chat_names(folder: Traversable | None = None) -> tuple[str, ...]:
    """The vision-language models with a card in a folder (None: the shipped ones), sorted."""
    return _names(folder, chat=True)


def _names(folder: Traversable | None, chat: bool) -> tuple[str, ...]:
    files_in = {entry.name for entry in (folder or shipped()).iterdir()}
    cards = sorted(name.removesuffix(".toml") for name in files_in if name.endswith(".toml"))
    return tuple(name for name in cards if (f"{name}.{TOKENIZER}" in files_in) is chat)


def card(name: str, folder: Traversable | None = None) -> CheckpointCard:
    """The card of a model in a folder (None: the shipped ones).

    Raises SetupError when it is missing or not readable as a card.
    """
    file = f"{name}.toml"
    try:
        table = tomllib.loads(((folder or shipped()) / file).read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # tables may be nested too deeply
        raise SetupError(f"{file} is not a readable model card: {error}") from error
    if "trunk" in table:
        return _with_head(card(str(table["trunk"]), folder), table, file)
    return CheckpointCard.read(name, table, file)


def _with_head(trunk: CheckpointCard, table: Mapping[str, Any], where: str) -> CheckpointCard:
    """The card of a head on another model's trunk. The table describes the head alone."""
    unknown = table.keys() - {"name", "description", "trunk", "dense", "clip", "labels"}
    if unknown:
        raise SetupError(f"{where} has unknown entries: {', '.join(sorted(unknown))}")
    if {"dense", "clip"} <= table.keys():
        raise SetupError(f"{where} has two heads: [dense] and [clip]")
    is_clip = "clip" in table
    return replace(
        trunk,
        name=str(table.get("name", "")),
        description=str(table.get("description", "")),
        labels=tuple(str(label) for label in table.get("labels", trunk.labels)),
        exits=(),
        trunk=trunk.name,
        clip=parse_record(ClipSpec, table["clip"], f"{where}: [clip]") if is_clip else None,
        dense=None if is_clip else parse_record(DenseSpec, table.get("dense"), f"{where}: [dense]"),
    )


def profile(name: str) -> Profile | None:
    """A shipped model's profile: the measured quality and cost of its plans. None where it has none."""
    file = shipped() / f"{name}.profile.json"
    return Profile.read(file.read_text("utf-8"), file.name) if file.is_file() else None


def agreements(weights: str) -> Mapping[str, float]:
    """By precision, the share of the held-out images to which shipped weights answer as in float32.

    weights: their SHA-256 digest. Empty for weights that were not measured.
    """
    recorded: Mapping[str, Mapping[str, float]] = json.loads((shipped() / AGREEMENTS).read_text("utf-8"))
    return recorded.get(weights, {})
