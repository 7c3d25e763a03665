"""Which class of a model the name of a folder means: a label, an index, or a WordNet id of ImageNet."""

import logging
import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from foveate.core.errors import SetupError

log = logging.getLogger(__name__)

WORDNET_ID = re.compile(r"n\d{8}")
"""A noun of WordNet 3.0, as the folders of ImageNet are named."""
IMAGENET_CLASSES = 1000
SPLITS = frozenset({"train", "training", "val", "valid", "validation", "test"})
"""Names of folders that hold a part of a dataset."""


def class_indices(folders: Sequence[Path], labels: Sequence[str]) -> Mapping[Path, int]:
    """The class index of each folder.

    A name is a label in any case, with spaces or underscores; one of the synonyms of a label, between
    commas; a class index; or, for a model of 1,000 classes, a WordNet id of ImageNet-1k. Raises SetupError
    for a folder that means no class, or several.
    """
    indices: dict[str, set[int]] = {}
    for index, label in enumerate(labels):
        for name in (label, *label.split(",")):
            indices.setdefault(_normalised(name), set()).add(index)
    classes = {}
    for folder in folders:
        matches = indices.get(_normalised(folder.name), set())
        if not matches and folder.name.isdecimal() and int(folder.name) < len(labels):
            matches = {int(folder.name)}
        if len(matches) > 1:
            raise SetupError(f"{folder} stands for more than one class of the model: name it by class index")
        if matches:
            classes[folder] = next(iter(matches))
    unknown = [folder for folder in folders if folder not in classes]
    if unknown and all(WORDNET_ID.fullmatch(folder.name) for folder in unknown):
        return {**classes, **_by_wordnet_id(unknown, len(labels))}
    if unknown:
        raise SetupError(_hint(unknown[0], folders))
    return classes


def _normalised(name: str) -> str:
    return re.sub(r"[\s_]+", " ", name).strip().casefold()


def _hint(unknown: Path, folders: Sequence[Path]) -> str:
    splits = sorted(folder.name for folder in folders if folder.name.casefold() in SPLITS)
    if unknown.name.casefold() in SPLITS:
        parts = ", ".join(splits)
        return (
            f"{unknown.parent} holds the parts {parts} of a dataset: pass one of them, as in --data {unknown}"
        )
    return (
        f"{unknown} stands for no class of the model: name class folders by label or by class index; "
        "without labels, put all images into one folder"
    )


def _by_wordnet_id(folders: Sequence[Path], classes: int) -> Mapping[Path, int]:
    """The index of each folder in ImageNet-1k, whose classes are in the order of their WordNet ids."""
    ids = _imagenet_ids() or sorted({folder.name for folder in folders})
    unknown = next((folder for folder in folders if folder.name not in ids), None)
    if classes != IMAGENET_CLASSES or len(ids) != IMAGENET_CLASSES or unknown is not None:
        raise SetupError(
            f"{unknown or folders[0]} is a WordNet id, which is known for the 1,000 classes of ImageNet-1k "
            f"with timm installed, and the model has {classes} classes: name class folders by label or by "
            "class index"
        )
    log.info("class folders with WordNet ids are taken as the classes of ImageNet-1k, in their order")
    return {folder: ids.index(folder.name) for folder in folders}


def _imagenet_ids() -> Sequence[str]:
    """The WordNet ids of ImageNet-1k in the order of its classes; empty without timm, which has the list."""
    spec = find_spec("timm")  # does not import timm, which needs torchvision
    for folder in (spec and spec.submodule_search_locations) or ():
        path = Path(folder, "data", "_info", "imagenet_synsets.txt")
        if path.is_file():
            return path.read_text("utf-8").split()
    return ()
