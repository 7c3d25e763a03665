"""Weights by path: a file, the folder that holds one, and the formats that are not read."""

from pathlib import Path
from typing import Any

from foveate.core.checkpoint_options import NOTHING_STATED, CheckpointOptions
from foveate.core.errors import SetupError
from foveate.models import zoo
from foveate.models.weights.description import CONFIG
from foveate.models.weights.json_file import read_table
from foveate.models.weights.state_dict import INDEX_SUFFIX, MAIN, PICKLED, SUFFIX, SUFFIXES
from foveate.models.weights.transformers_format import is_transformers_format, runs_in_trunk

_ONNX = ".onnx"
OTHER_FORMATS = (".npz", _ONNX, ".h5", ".msgpack", ".pkl", ".pickle")
"""Suffixes of weights that are not read."""
MAIN_PICKLED = "pytorch_model.bin"
"""The file that older versions of timm and transformers write."""
PREFIX = "hf:"
"""Put before a name, it says that the name is one of transformers."""
_COMPANIONS = (f".stitches{SUFFIX}", f".clicks{SUFFIX}", f".exits{SUFFIX}")
"""Files that foveate keeps beside the weights of a model."""
_TRAINING = (
    "training_args.bin",
    "optimizer.bin",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "scaler.pt",
)
"""Files that transformers and accelerate keep beside the weights that they train."""


def is_local(name: str) -> bool:
    """Whether a model's name is the path of weights: a file, or a folder for the elastic trunk."""
    if name.endswith((*SUFFIXES, INDEX_SUFFIX)):
        return True
    return is_folder(name) and not runs_in_transformers(name)


def is_folder(name: str) -> bool:
    """Whether a name means a folder of this machine, and not the model of the same name."""
    path = Path(name)
    if not path.is_dir():
        return False
    return "/" in name or (name not in zoo.names() and (path / CONFIG).is_file())


def runs_in_transformers(name: str) -> bool:
    """Whether a folder, or the weights file in it, is a transformers model that the trunk does not run."""
    table = _transformers_table(name)
    return table is not None and not runs_in_trunk(table)


def may_run_in_trunk(name: str) -> bool:
    """Whether a folder, or the weights file in it, is a transformers model that the trunk may run."""
    table = _transformers_table(name)
    return table is not None and runs_in_trunk(table)


def _transformers_table(name: str) -> dict[str, Any] | None:
    """transformers' configuration in a folder, or beside the weights file in it; None without one."""
    path = Path(name)
    folder = path.parent if path.name in (MAIN, MAIN + ".index.json", MAIN_PICKLED) else path
    if not (folder.is_dir() and (folder / CONFIG).is_file()):
        return None
    try:
        table: dict[str, Any] = read_table(folder / CONFIG)
    except SetupError:
        return None  # reading the description reports the error
    return table if is_transformers_format(table) else None


def weights_path(name: str) -> Path:
    """The weights file of a local model. For shards it is the file that an index stands for.

    Raises SetupError for a folder without weights, or with several files that may be meant.
    """
    path = Path(name.removesuffix(INDEX_SUFFIX) + SUFFIX if name.endswith(INDEX_SUFFIX) else name)
    if not path.is_dir():
        return path
    chat = chat_weights(path)
    if chat is not None:
        return chat
    files = sorted(p for p in path.glob(f"*{SUFFIX}") if not p.name.endswith(_COMPANIONS))
    indices = sorted(path.glob(f"*{INDEX_SUFFIX}"))
    if (path / MAIN).is_file() or (len(indices) == 1 and indices[0].name == MAIN + ".index.json"):
        return path / MAIN
    if len(indices) == 1:
        return path / (indices[0].name.removesuffix(INDEX_SUFFIX) + SUFFIX)
    if len(files) == 1:
        return files[0]
    if files:
        raise SetupError(_ambiguous(name, files))
    return _pickled_path(path, name)


def chat_weights(path: Path) -> Path | None:
    """The weights of the vision-language model whose files a folder holds, or whose file this is; None for
    other models.

    Raises SetupError for a folder with several of them.
    """
    if not path.is_dir():
        return path if path.suffix == SUFFIX and path.with_suffix(f".{zoo.TOKENIZER}").is_file() else None
    names = zoo.chat_names(path)
    if len(names) > 1:
        raise SetupError(
            f"{path} holds {len(names)} models, {', '.join(names)}: name the {SUFFIX} file of one"
        )
    return path / f"{names[0]}{SUFFIX}" if names else None


def _pickled_path(folder: Path, name: str) -> Path:
    """The file of `torch.save` in a folder without safetensors. Raises SetupError unless there is one."""
    if (folder / MAIN_PICKLED).is_file():
        return folder / MAIN_PICKLED
    if any(folder.glob("*.bin.index.json")):
        raise SetupError(
            f"{name} holds shards of torch.save, which are not joined: save it as {SUFFIX} files"
        )
    files = sorted(p for p in folder.iterdir() if p.name.endswith(PICKLED) and p.name not in _TRAINING)
    if len(files) > 1:
        raise SetupError(_ambiguous(name, files))
    if files:
        return files[0]
    others = sorted(p for p in folder.iterdir() if p.name.endswith(OTHER_FORMATS))
    if others:
        raise SetupError(other_format(str(others[0])))
    also = ""
    if (folder / CONFIG).is_file():
        try:
            read_table(folder / CONFIG)
        except SetupError as error:
            also = f"; besides, its {error.detail}"
    raise SetupError(f"there is no {SUFFIX} file in {name}, and no other file of weights{also}")


def _ambiguous(name: str, files: list[Path]) -> str:
    names = ", ".join(p.name for p in files[:3]) + (", ..." if len(files) > 3 else "")
    return f"{name} holds {len(files)} weights files, {names}: name one of them"


def canonical_name(name: str) -> str:
    """The path of the weights file for a local folder; any other name as it is."""
    name = without_prefix(name)
    return str(weights_path(name)) if is_local(name) else name


def without_prefix(name: str) -> str:
    """The path of local weights for the elastic trunk without `hf:`; any other name as it is."""
    path = name.removeprefix(PREFIX)
    return path if is_local(path) else name


def other_format(name: str) -> str:
    """A sentence that refuses weights in another format, with the fix."""
    if name.endswith(_ONNX):
        return f"{name} is a model of its own, which has no place in a family: serve it with --model {name}"
    return (
        f"{name} cannot be loaded: weights are read from {SUFFIX} files, and from files of torch.save that "
        f"end in {', '.join(PICKLED)}; convert it to {SUFFIX}"
    )


def check_no_options(name: str, options: CheckpointOptions) -> None:
    """Raise SetupError when something is stated about a model that states it itself."""
    if options != NOTHING_STATED:
        raise SetupError(
            f"{', '.join(options.stated())} cannot be set for {name}, which has a configuration of its own; "
            "options describe files of weights"
        )
