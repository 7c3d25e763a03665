"""Compares the size that a configuration states with the weights file, before memory is reserved for it.

A configuration is a text from elsewhere: one number in it can ask for a network of any size.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from foveate.core.class_labels import MAX_LABELS
from foveate.core.errors import SetupError
from foveate.models.weights.state_dict import INDEX_SUFFIX, MAIN, SUFFIX, read_names, weight_map

FIX = "take the configuration that was saved with them"
"""What to do about weights and a configuration that do not belong together."""
LAYER_COUNTS = frozenset({
    "decoder_layers", "depth", "depths", "encoder_layers", "layers", "n_layer", "n_layers", "num_blocks",
    "num_encoder_blocks", "num_hidden_layers", "num_layers",
})  # fmt: skip
"""Entries of transformers' configurations, and arguments of timm's networks, that count layers."""
CLASS_COUNTS = ("num_labels", "num_classes")
"""Entries that count classes. transformers makes a table of so many names when it reads the first one."""
MAX_LAYERS = 10_000
"""Most layers where the weights file is not known yet."""
TENSORS_FOR_EACH, TENSORS_MORE = 4, 1000
"""A network may have so many parameters for each tensor of its file, and so many more."""
VALUES_FOR_EACH, VALUES_MORE = 2, 10_000_000
"""A network may have so many values for each byte of its file, and so many more. The usual types have
less than one, and parameters that the file lacks are refused later, by name."""


@dataclass(frozen=True, slots=True)
class StoredSize:
    """What the weights files of a model hold."""

    tensors: int
    size: int
    """Bytes of the files."""


LARGEST = StoredSize(MAX_LAYERS, 2**35)
"""Stands for a file that is not known yet."""


def stored_size(source: str, find: Callable[[str], Path | None]) -> StoredSize:
    """The size of the weights of a checkpoint of transformers, which are not read yet.

    find: the path of a file of the checkpoint by its name, None where there is none. Raises SetupError where
    there are no weights, and for files of another format.
    """
    try:
        names = [MAIN] if find(MAIN) else sorted(set(weight_map(_index(find)).values()))
        files = {name: find(name) for name in names}
        missing = next((name for name, file in files.items() if file is None), None)
        if missing is not None:
            raise SetupError(f"there is no {missing}")
        present = [file for file in files.values() if file is not None]
        tensors = sum(len(read_names(file)) for file in present)
    except SetupError as error:
        raise SetupError(f"the weights of {source} cannot be loaded: {error.detail}") from error
    return StoredSize(tensors, sum(file.stat().st_size for file in present))


def _index(find: Callable[[str], Path | None]) -> Path:
    index = find(MAIN + INDEX_SUFFIX.removeprefix(SUFFIX))
    if index is None:
        raise SetupError(
            f"it has no {MAIN}, and no shards of it: load the model with transformers once, and write it "
            "with save_pretrained"
        )
    return index


def check_counts(table: Mapping[str, Any], where: str, stored: StoredSize | None = None) -> None:
    """Raise SetupError for more layers than there are tensors in the weights file, and for too many classes.

    table: the configuration, whose nested tables are checked too; stored: None where it is not known yet.
    """
    most = MAX_LAYERS if stored is None else stored.tensors
    for name, value in table.items():
        if isinstance(value, Mapping):
            with suppress(RecursionError):  # no configuration nests so deep: transformers refuses it
                check_counts(value, where, stored)
            continue
        if name in LAYER_COUNTS and _total(value) > most:
            why = "" if stored is None else f", and its weights are {most} tensors; {FIX}"
            raise SetupError(f"{where} states {name} {_short(value)}{why or f': at most {most} are served'}")
        if name in CLASS_COUNTS and _total(value) > MAX_LABELS:
            raise SetupError(f"{where} states {name} {_short(value)}: at most {MAX_LABELS} are served")


@contextmanager
def limited_to(stored: StoredSize | None, where: str) -> Iterator[None]:
    """While this is entered, a network that is made on the meta device must not be far larger than its file.

    stored: None where the file is not known yet. Raises SetupError from the constructor, so that neither time
    nor memory is spent on the rest of the network.
    """
    why = "any that is served"
    if stored is not None:
        why = f"its weights: they are {stored.tensors} tensors in {stored.size:,} bytes; {FIX}"
    stored = stored or LARGEST
    most_tensors = TENSORS_FOR_EACH * stored.tensors + TENSORS_MORE
    most_values = VALUES_FOR_EACH * stored.size + VALUES_MORE
    tensors = values = 0

    def count(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        nonlocal tensors, values
        if parameter.device.type != "meta":
            return  # a value of the file, put into its place
        tensors, values = tensors + 1, values + parameter.numel()
        if tensors > most_tensors or values > most_values:
            raise SetupError(f"{where} describes a network that is far larger than {why}")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def _total(value: object) -> float:
    """A number, or the sum of a list of numbers; 0 for anything else, which transformers and timm refuse."""
    numbers = value if isinstance(value, list | tuple) else [value]
    return sum(n for n in numbers if isinstance(n, int | float) and not isinstance(n, bool) and n > 0)


def _short(value: object) -> str:
    return repr(value) if len(repr(value)) <= 40 else f"{repr(value)[:40]}..."
