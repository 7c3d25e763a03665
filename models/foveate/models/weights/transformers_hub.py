"""Checkpoints of vision transformers on the Hugging Face hub, by `org/name`.

The configuration is fetched first, so the weights of a model that is refused are never downloaded. A file of
`torch.save` is fetched only where a repository has no safetensors.
"""

import re
from contextlib import suppress
from functools import lru_cache
from importlib import import_module
from pathlib import Path

from foveate.core.errors import SetupError
from foveate.models.weights.description import CONFIG, describe_beside
from foveate.models.weights.hub_access import hub_access
from foveate.models.weights.json_file import read_table
from foveate.models.weights.local_files import (
    MAIN_PICKLED,
    OTHER_FORMATS,
    PREFIX,
    is_folder,
    is_local,
)
from foveate.models.weights.state_dict import MAIN, weight_map
from foveate.models.weights.timm_architectures import ORGANISATION
from foveate.models.weights.timm_config import sentence
from foveate.models.weights.transformers_format import is_transformers_format, runs_in_trunk

README = "README.md"
_ON_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_INDEX = f"{MAIN}.index.json"
_OPTIONAL = ("preprocessor_config.json", "processor_config.json", README)


def is_hub_name(name: str) -> bool:
    """Whether a name is `org/name` on the hub. Names of timm's and local folders are none."""
    if name.startswith(ORGANISATION) or is_local(name) or is_folder(name):
        return False
    return not name.endswith(OTHER_FORMATS) and _ON_HUB.fullmatch(name) is not None


def is_trunk_repository(name: str) -> bool:
    """Whether `org/name`, with or without `hf:`, has the configuration of an architecture that the trunk may
    run. False where the configuration cannot be fetched, which the loader that asks for it then reports."""
    repository = name.removeprefix(PREFIX)
    if not is_hub_name(repository):
        return False
    try:
        table = read_table(_configuration(repository))
    except SetupError:
        return False
    return is_transformers_format(table) and runs_in_trunk(table)


def fetch_weights(name: str) -> Path:
    """The local path of the weights of `org/name`, with its configuration and preprocessing beside them.

    Raises SetupError, one sentence, for files that cannot be fetched, for a repository without weights, and
    for a checkpoint that the trunk does not represent, before its weights are fetched.
    """
    repository = name.removeprefix(PREFIX)
    configuration = _configuration(repository)
    folder = configuration.parent
    with hub_access(repository):
        for file in _OPTIONAL:
            with suppress(SetupError):  # a repository may lack it, and a cache without network too
                _file(repository, file, folder.name)
        describe_beside(folder / MAIN)
        return folder / _fetch_network(repository, folder.name)


def _fetch_network(repository: str, revision: str) -> str:
    """Fetch the weights: one file, shards, or else a file of `torch.save`. The name of the file to read."""
    missing = []
    for file in (MAIN, _INDEX, MAIN_PICKLED):
        try:
            path = _file(repository, file, revision)
        except SetupError as error:
            missing.append(error)
            continue
        if file != _INDEX:
            return file
        for shard in sorted(set(weight_map(path).values())):
            _file(repository, shard, revision)
        return MAIN
    unknown = next((error for error in missing if not isinstance(error, _Absent)), None)
    raise unknown or SetupError(
        f"{repository} has no {MAIN}, no shards of it and no {MAIN_PICKLED}, and weights are read from these "
        "alone: load the model with transformers once, write it with save_pretrained, and serve the folder"
    )


def source_of(name: str) -> str:
    """The address of a repository."""
    return f"https://huggingface.co/{name.removeprefix(PREFIX)}"


def licence_of(folder: Path) -> str:
    """The licence in the header of the README in a folder; empty where there is none."""
    path = folder / README
    head = path.read_text("utf-8", "replace").split("---", 2) if path.is_file() else []
    match = re.search(r"^license: *([\w.-]+)", head[1], re.MULTILINE) if len(head) == 3 else None
    return match[1] if match else ""


class _Absent(SetupError):
    """The hub says that a repository has no such file."""


@lru_cache(maxsize=64)
def _configuration(repository: str) -> Path:
    """The configuration of a repository, which is asked for once. Raises SetupError where there is none."""
    with hub_access(repository):
        return _file(repository, CONFIG, None)


def _file(repository: str, file: str, revision: str | None) -> Path:
    """A file of a repository, downloaded where it is not in the cache. It needs `hub_access`.

    Raises SetupError where it is in neither place.
    """
    hub, errors = import_module("huggingface_hub"), import_module("huggingface_hub.errors")
    try:
        return Path(hub.hf_hub_download(repository, file, revision=revision))
    except (OSError, ValueError, errors.EntryNotFoundError, errors.HTTPError) as error:
        kind = _Absent if isinstance(error, errors.RemoteEntryNotFoundError) else SetupError
        why = f"{file} of {repository} could not be fetched ({sentence(error)})"
        raise kind(f"{why}; the path of a local folder can be given instead") from error
