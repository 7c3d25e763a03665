"""The network in what training code saves: a state dict, alone or beside averages and optimizers."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foveate.core.errors import SetupError
from foveate.models.weights.pickled_file import read_pickled

log = logging.getLogger(__name__)

AVERAGED = (
    "state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "model_ema_state_dict", "params_ema", "ema",
    "teacher",
)  # fmt: skip
"""Entries with an average of the weights during training. It is usually the better model, and published
results are mostly those of the average. In self-distillation the teacher is the average of the student."""
TRAINED = (
    "state_dict", "model_state_dict", "model_state", "model", "module", "net", "network", "weights", "params",
    "student",
)  # fmt: skip
"""Entries with the weights as trained."""
MAX_DEPTH = 4
"""Most tables inside one another."""
MAX_CLAIM = 2
"""Most bytes of all tensors together, as a multiple of the file's. Tensors may share their values."""


def read_network(path: Path, prefix: str | None = None) -> dict[str, Tensor]:
    """The state dict of the network in a file of `torch.save`.

    An average of the weights (EMA) is preferred to the weights themselves, and the log says so. prefix: if
    it begins with the name of an entry, as in `model.`, that entry is read; its name stays part of the names.
    Raises SetupError for a file that cannot be read or holds no network, several ones, or unusual tensors.
    """
    saved = read_pickled(path)
    if not isinstance(saved, Mapping):
        kind = "a single tensor" if isinstance(saved, Tensor) else f"an object of type {type(saved).__name__}"
        raise SetupError(f"{path.name} holds {kind}, and no state dict: save model.state_dict()")
    entry = (prefix or "").partition(".")[0]
    if isinstance(saved.get(entry), Mapping):
        state = {f"{entry}.{name}": value for name, value in _tensors(saved[entry]).items()}
        if not state:
            raise SetupError(f"{path.name} has no tensors under {entry!r}: name another entry with --prefix")
    else:
        state = _chosen(saved, path, 0)
    _check_storage(state, path)
    return state


def _chosen(saved: Mapping[Any, Any], path: Path, depth: int) -> dict[str, Tensor]:
    """The state dict in a table, or in the entry of it that holds the network."""
    own = _tensors(saved)
    tables = [name for name, value in saved.items() if isinstance(name, str) and _holds_tensors(value)]
    averaged = [name for name in AVERAGED if name in tables]
    trained = [name for name in TRAINED if name in tables]
    # Tensors beside tables are counters, as in {"state_dict": ..., "step": tensor(3)}. Parameters have dots.
    if own and (not tables or (not averaged and not trained and any("." in name for name in own))):
        return own
    if depth == MAX_DEPTH or not tables:
        entries = ", ".join(str(name)[:40] for name in list(saved)[:5]) or "nothing"
        raise SetupError(f"{path.name} holds no state dict; it has {entries}: save model.state_dict()")
    if averaged:
        if trained:
            log.warning(
                "%s holds an average of the weights, %s, beside %s: the average is used; --prefix %s. reads "
                "the other one",
                path.name, averaged[0], trained[0], trained[0],
            )  # fmt: skip
        return _chosen(saved[averaged[0]], path, depth + 1)
    if not trained and len(tables) > 1:
        names = ", ".join(map(repr, sorted(tables)[:5]))
        raise SetupError(
            f"{path.name} holds {len(tables)} networks, under {names}: name one with --prefix, as in "
            f"--prefix {min(tables)}."
        )
    return _chosen(saved[(trained or tables)[0]], path, depth + 1)


def _holds_tensors(value: Any, depth: int = 0) -> bool:
    """Whether a value is a table of tensors by name, at some depth. An optimizer's state has numbers."""
    if not isinstance(value, Mapping) or depth == MAX_DEPTH:
        return False
    return bool(_tensors(value)) or any(
        isinstance(name, str) and _holds_tensors(each, depth + 1) for name, each in value.items()
    )


def _tensors(saved: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {n: v.detach() for n, v in saved.items() if isinstance(n, str) and isinstance(v, Tensor)}


def _check_storage(state: Mapping[str, Tensor], path: Path) -> None:
    """Raise SetupError for tensors that are not plain, or that claim more values than the file can hold."""
    claimed, size = 0, path.stat().st_size
    for name, value in state.items():
        if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
            raise SetupError(
                f"{path.name} stores {name} as a tensor that is sparse, quantised or without values: save "
                "dense weights"
            )
        claimed += value.numel() * value.element_size()
        if claimed > MAX_CLAIM * size:
            raise SetupError(
                f"{path.name} is damaged: {name} claims more values than the file of {size} bytes holds"
            )
