"""Checkpoints of vision transformers on the Hugging Face hub, by `org/name`.

The configuration is fetched first, so the weights of a model that is refused are never downloaded. Only
safetensors are fetched.
"""

import re
from contextlib import suppress
from functools import lru_cache
from importlib import import_module
from pathlib import Path

from foveate.core.errors import SetupError
from foveate.models.weights.description import CONFIG, describe_beside
from foveate.models.weights.json_file import read_table
from foveate.models.weights.local_files import MAIN, OTHER_FORMATS, PREFIX, is_folder, is_local
from foveate.models.weights.state_dict import weight_map
from foveate.models.weights.timm_config import sentence
from foveate.models.weights.transformers_format import is_transformers_format, runs_in_trunk

README = "README.md"
_ON_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_INDEX = f"{MAIN}.index.json"
_OPTIONAL = ("preprocessor_config.json", "processor_config.json", README)
_PICKLE = "pytorch_model.bin"


def is_hub_name(name: str) -> bool:
    """Whether a name is `org/name` on the hub. Names of timm's and local folders are none."""
    if name.startswith("timm/") or is_local(name) or is_folder(name):
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

    Raises SetupError, one sentence, for files that cannot be fetched, for a repository without safetensors,
    and for a checkpoint that the trunk does not represent, before its weights are fetched.
    """
    repository = name.removeprefix(PREFIX)
    configuration = _configuration(repository)
    revision = configuration.parent.name
    for file in _OPTIONAL:
        with suppress(SetupError):  # a repository may lack it, and a cache without network too
            _file(repository, file, revision)
    weights = configuration.parent / MAIN
    describe_beside(weights)
    _fetch_safetensors(repository, revision)
    return weights


def _fetch_safetensors(repository: str, revision: str) -> None:
    """Fetch the weights, in one file or in shards."""
    try:
        _file(repository, MAIN, revision)
    except SetupError as missing:
        try:
            index = _file(repository, _INDEX, revision)
        except _Absent as error:
            known = isinstance(missing, _Absent)
            raise (SetupError(_conversion(repository)) if known else missing) from error
        except SetupError:
            raise missing from None
        for shard in sorted(set(weight_map(index).values())):
            _file(repository, shard, revision)


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
    return _file(repository, CONFIG, None)


def _file(repository: str, file: str, revision: str | None) -> Path:
    """A file of a repository, downloaded where it is not in the cache.

    Raises SetupError where it is in neither place, or huggingface_hub is not installed.
    """
    try:
        errors, hub = import_module("huggingface_hub.errors"), import_module("huggingface_hub")
    except ModuleNotFoundError as error:
        command = "pip install 'foveate[transformers]'"
        raise SetupError(f"{repository} needs {error.name}, which is not installed: {command}") from None
    try:
        if not isinstance(hub.try_to_load_from_cache(repository, file, revision=revision), str):
            # Without this question, the library tries for half a minute to reach a hub that is not there.
            hub.get_hf_file_metadata(hub.hf_hub_url(repository, file, revision=revision))
        return Path(hub.hf_hub_download(repository, file, revision=revision))
    except (OSError, ValueError, errors.EntryNotFoundError, errors.HTTPError) as error:
        kind = _Absent if isinstance(error, errors.RemoteEntryNotFoundError) else SetupError
        why = f"{file} of {repository} could not be fetched ({sentence(error)})"
        raise kind(f"{why}; the path of a local folder can be given instead") from error


def _conversion(repository: str) -> str:
    """A sentence that refuses a repository without safetensors, with the fix."""
    folder = repository.rpartition("/")[2]
    return (
        f"{repository} has no {MAIN}, and weights are read from safetensors alone, which run no code; if it "
        f"has a {_PICKLE}, run `hf download {repository} --local-dir {folder}`, convert it with: "
        f'python -c "import torch, safetensors.torch as s; s.save_file({{n: v.clone() for n, v in '
        f"torch.load('{folder}/{_PICKLE}', map_location='cpu', weights_only=True).items()}}, "
        f"'{folder}/{MAIN}')\", and serve the folder {folder}"
    )
