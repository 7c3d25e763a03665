"""State dicts from files of weights: shards are joined, and each tensor is checked."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from foveate.core.errors import SetupError
from foveate.models.weights.pickled_file import SIGNATURES
from foveate.models.weights.saved_networks import read_network

SUFFIX = ".safetensors"
MAIN = f"model{SUFFIX}"
"""The file that timm and transformers write."""
PICKLED = (".pth.tar", ".pth", ".pt", ".bin", ".ckpt")
"""Suffixes of files that `torch.save` writes."""
SUFFIXES = (SUFFIX, *PICKLED)
"""Suffixes of all files that weights are read from."""
COUNTERS = frozenset({"n_averaged"})
"""What torch's AveragedModel stores beside the network. It has no influence on answers."""
INDEX_SUFFIX = ".safetensors.index.json"
"""The suffix of the file that names the shard of each tensor."""
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_SIGNATURES = (
    *SIGNATURES,
    (b"PK\x03\x04", "a file of torch.save under another name: rename it to end in .pth"),
    (b"\x80", "a pickle: a file of torch.save is read where its name ends in .pth"),
)
"""How other files begin that often bear the name of a safetensors file, and what they are."""


def stem_of(name: str) -> str:
    """The name or path of a file of weights without its suffix: `a/net.pth.tar` -> `a/net`."""
    return name.removesuffix(next((suffix for suffix in SUFFIXES if name.endswith(suffix)), ""))


def _every_name(_: str) -> bool:
    return True


def read_state(
    path: Path, prefix: str | None = None, uses: Callable[[str], bool] = _every_name
) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    """The tensors of a file by name, and the file's metadata.

    prefix: may name a part of a file of `torch.save`, as `read_network` describes; uses: whether to read the
    tensor of a name.

    Where the file is missing and an index stands beside it, all shards of the index are read. Raises
    SetupError for files that are missing, truncated or of another format.
    """
    if path.name.endswith(PICKLED):
        network = read_network(path, prefix)
        return {name: value for name, value in network.items() if uses(name)}, {}
    index = path.with_name(path.name.removesuffix(SUFFIX) + INDEX_SUFFIX)
    if not path.is_file() and index.is_file():
        return _read_shards(index, uses), {}
    if not path.is_file():
        raise SetupError(f"there is no file {path}")
    with _opened(path) as file:
        names = [name for name in file.keys() if uses(name)]  # noqa: SIM118 -- no mapping
        return {name: file.get_tensor(name) for name in names}, file.metadata() or {}


def read_metadata(path: Path) -> Mapping[str, str]:
    """A file's metadata. Empty for a file that cannot be read: reading its weights reports the error."""
    try:
        with _opened(path) as file:
            return file.metadata() or {}
    except SetupError:
        return {}


def read_names(path: Path) -> list[str]:
    """The names of the tensors of a safetensors file, which are not read. Raises SetupError."""
    with _opened(path) as file:
        return list(file.keys())


def check_tensors(state: Mapping[str, Tensor], where: str) -> None:
    """Raise SetupError, which names the tensor, for a type other than 16 to 64-bit floats, and for NaN."""
    for name, value in state.items():
        if value.dtype not in _DTYPES:
            raise SetupError(
                f"{where} stores {name} as {value.dtype}, and only floats of 16 to 64 bits are read: "
                "save the weights without quantisation"
            )
        # A sum is finite only if all its terms are. It takes one pass; the exact check takes several.
        total = value.sum(dtype=torch.promote_types(value.dtype, torch.float32))
        if not total.isfinite() and not value.isfinite().all():
            raise SetupError(f"{where} is damaged: {name} holds values that are NaN or infinite")


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """An open safetensors file. Raises SetupError for another format, and when a tensor cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise SetupError(f"{path.name} is not a readable safetensors file: {_reason(path, error)}") from error


def _reason(path: Path, error: Exception) -> str:
    """What the file is instead, as far as its first bytes show it."""
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError:
        return str(error)
    if not head:
        return "it is empty"
    kind = next((kind for start, kind in _SIGNATURES if head.startswith(start)), None)
    return f"it is {kind}" if kind else f"{error}; it may be truncated: copy or download it again"


def _read_shards(index: Path, uses: Callable[[str], bool]) -> dict[str, Tensor]:
    """The tensors that are used of all shards that an index names. Raises SetupError unless both agree."""
    shard_of = weight_map(index)
    state: dict[str, Tensor] = {}
    for shard in sorted(set(shard_of.values())):
        path = index.parent / shard
        if not path.is_file():
            raise SetupError(f"{index.name} names the shard {shard}, and there is no such file beside it")
        with _opened(path) as file:
            names = set(file.keys())
            expected = {name for name, where in shard_of.items() if where == shard}
            if names != expected:
                name = min(names ^ expected)
                raise SetupError(f"{index.name} and {shard} do not belong together: they differ in {name}")
            state |= {name: file.get_tensor(name) for name in names if uses(name)}
    return state


def weight_map(index: Path) -> dict[str, str]:
    """The shard of each tensor. Raises SetupError for an index of another form."""
    try:
        table = json.loads(index.read_text("utf-8"))
        shard_of = dict(table["weight_map"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise SetupError(f"{index.name} is not a readable index of shards: {error!r}") from error
    for shard in shard_of.values():
        # A name with a path could point at any file of the machine.
        if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(SUFFIX):
            raise SetupError(f"{index.name} names the shard {shard!r}; shards are {SUFFIX} files beside it")
    return shard_of
