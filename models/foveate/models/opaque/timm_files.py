"""Weights files and folders of timm's networks that the elastic trunk does not represent."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from foveate.core.checkpoint_options import NOTHING_STATED, CheckpointOptions, flag_of, text_of
from foveate.core.errors import SetupError
from foveate.models.opaque.checkpoint import OpaqueCheckpoint
from foveate.models.opaque.parameter_fit import check_fit, names_of_network
from foveate.models.opaque.timm_classifiers import IMAGE_SIZE, constructor_takes, describe, serving_arguments
from foveate.models.weights.checkpoint import name_of
from foveate.models.weights.description import CONFIG, file_beside, is_own_format, own_values
from foveate.models.weights.json_file import read_table
from foveate.models.weights.options_file import parse_options, with_labels_read
from foveate.models.weights.state_dict import check_tensors, read_state, stem_of
from foveate.models.weights.stated_size import StoredSize, check_counts, limited_to
from foveate.models.weights.timm_architectures import architecture_name
from foveate.models.weights.timm_config import import_timm
from foveate.models.weights.timm_format import (
    classes_of,
    is_timm_format,
    model_arguments,
    preparation_values,
)
from foveate.models.weights.timm_models import check_known, create
from foveate.models.zoo import MAX_NAME

log = logging.getLogger(__name__)

_ONLY_IN_TRUNK = ("heads", "activation", "eps", "pool")
"""Options that other networks than plain ViTs do not have."""
_PREPARATION = ("mean", "std", "crop_pct", "crop_mode", "interpolation")


def load(path: Path, options: CheckpointOptions = NOTHING_STATED) -> OpaqueCheckpoint:
    """The network in a weights file. The options or the JSON file beside it state its architecture.

    The number of classes is that of the classifier in the file. Raises SetupError, one sentence, when no
    architecture is stated, timm does not have it, the weights do not fit it, or the labels do not.
    """
    beside, table, file = _beside(path)
    stated = with_labels_read(options).over(beside)
    if not stated.architecture:
        raise SetupError(
            f"{path.name} needs the name of its network: state it with --architecture, or as architecture in "
            f"{stem_of(path.name)}.json beside it"
        )
    for name in _ONLY_IN_TRUNK:
        if getattr(stated, name) is not None:
            raise SetupError(
                f"{name} cannot be set for {path.name}: {stated.architecture} of timm states it itself"
            )
    timm = import_timm(f"the {stated.architecture} of {path.name}")
    architecture = architecture_name(stated.architecture)
    check_known(timm, architecture, ())
    state, _ = read_state(path, stated.prefix)
    arguments = dict(model_arguments(table, file)) | _size_arguments(timm, architecture, stated.image_size)
    module, state = _fitted(timm, architecture, arguments, state, path.name, stated.prefix)
    # Besides counters, a few networks have bounds that are infinite from the start.
    unchecked = {
        name
        for name, value in module.state_dict().items()
        if not (value.is_floating_point() and value.isfinite().all())
    }
    check_tensors({name: value for name, value in state.items() if name not in unchecked}, path.name)
    _check_classes(module, table, file, stated, path)
    module.load_state_dict(state)
    module.pretrained_cfg |= _overlay(stated)
    return _described(module, path, stated)


def _beside(path: Path) -> tuple[CheckpointOptions, Mapping[str, Any], str]:
    """What the JSON file beside the weights states, the table in timm's format, and the file's name."""
    file = file_beside(path)
    if file is None:
        return NOTHING_STATED, {}, ""
    table, where = read_table(file), f"{file.name} beside {path.name}"
    timms = is_timm_format(table) and not is_own_format(table)
    values = preparation_values(table, where) if timms else own_values(table, where, file.name == CONFIG)
    options = parse_options(values, where, file.parent)
    if timms:
        options = options.model_copy(update={"architecture": table["architecture"]})
    return options, table if timms else {}, where


def _size_arguments(timm: Any, architecture: str, image_size: int | None) -> dict[str, Any]:
    """The constructor's argument for images of another size, where it has one."""
    if image_size is None or not constructor_takes(create(timm, architecture, pretrained=False), IMAGE_SIZE):
        return {}
    return {IMAGE_SIZE: image_size}


def _fitted(
    timm: Any,
    architecture: str,
    arguments: Mapping[str, Any],
    state: Mapping[str, Tensor],
    where: str,
    prefix: str | None,
) -> tuple[Any, dict[str, Tensor]]:
    """The network without its weights yet, and the parameters under its names.

    Other names than timm's are translated as timm itself translates them. Raises SetupError, which names the
    first parameter that does not fit.
    """
    stored = StoredSize(len(state), sum(value.nbytes for value in state.values()))
    check_counts(arguments, f"model_args of {where}", stored)
    with limited_to(stored, f"the {architecture} of {where}"):
        empty: Any = create(timm, architecture, pretrained=False, **arguments)
    expected = empty.state_dict()
    state = names_of_network(state, expected, where, prefix)
    if not state.keys() & expected.keys() or state.keys() - expected.keys():
        state = _translated(timm, architecture, state, empty)
    classes = _classes(empty, state)
    more = {} if classes is None else {"num_classes": classes}
    if classes not in (None, empty.num_classes):
        empty = create(timm, architecture, pretrained=False, **{**arguments, **more})
    check_fit(state, empty.state_dict(), where, architecture)
    arguments = {**arguments, **more, **serving_arguments(empty)}
    module = create(timm, architecture, pretrained=False, device="cpu", **arguments)
    used = module.state_dict().keys()  # without the projection to a language model's tokens
    return module, {name: value for name, value in state.items() if name in used}


def _translated(
    timm: Any, architecture: str, state: dict[str, Tensor], module: nn.Module
) -> dict[str, Tensor]:
    """The parameters under timm's names, where they have those of other code that timm knows."""
    source = import_module(timm.model_entrypoint(architecture.partition(".")[0]).__module__)
    translate = getattr(source, "checkpoint_filter_fn", None)
    if translate is None:
        return state
    try:
        translated = translate(dict(state), module)
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError):
        return state  # the comparison of names says what does not fit
    return dict(translated)


def _classes(module: Any, state: Mapping[str, Tensor]) -> int | None:
    """The classes of the classifier in the file; None where it has none of this name."""
    names = module.pretrained_cfg.get("classifier") or ()
    for name in (names,) if isinstance(names, str) else names:
        weight = state.get(f"{name}.weight")
        if weight is not None and weight.ndim:
            return int(weight.shape[0])
    return None


def _check_classes(
    module: Any, table: Mapping[str, Any], file: str, stated: CheckpointOptions, path: Path
) -> None:
    """Raise SetupError where the file beside the weights, or the labels, have another number of classes."""
    classes, expected = int(module.num_classes), classes_of(table)
    if expected is not None and expected != classes:
        raise SetupError(
            f"{file} belongs to other weights: it says {expected} classes, and the weights show {classes}"
        )
    labels = stated.labels or ()
    if labels and len(labels) != classes:
        raise SetupError(
            f"{len(labels)} labels are stated for {path.name}, and its weights have {classes} classes: "
            "name each class once, with --labels or in the JSON file beside the weights"
        )


def _overlay(stated: CheckpointOptions) -> dict[str, Any]:
    """What is stated about images, in timm's words. A file is not the origin that timm names."""
    values = {name: getattr(stated, name) for name in _PREPARATION if getattr(stated, name) is not None}
    if stated.image_size is not None:
        values["input_size"] = (3, stated.image_size, stated.image_size)
        values["test_input_size"] = None
    if stated.crop_pct is not None:
        values["test_crop_pct"] = None
    return values | {"hf_hub_id": None, "url": None, "license": None}


def _described(module: Any, path: Path, stated: CheckpointOptions) -> OpaqueCheckpoint:
    """The checkpoint. One warning names the preparation that nothing states."""
    checkpoint = describe(
        module, name_of(path), f"{stated.architecture} of timm, with the weights of {path.name}"
    )
    used = {"mean": checkpoint.mean, "std": checkpoint.std, "crop_pct": checkpoint.input.crop_pct}
    guesses = {name: value for name, value in used.items() if getattr(stated, name) is None}
    if guesses:
        values = ", ".join(f"{name} {text_of(value)}" for name, value in guesses.items())
        log.warning(
            "%s does not state how its images were prepared: they are prepared as for timm's %s, with %s; "
            "state what differs with %s",
            path, stated.architecture, values, " ".join(map(flag_of, guesses)),
        )  # fmt: skip
    labels = tuple(stated.labels) if stated.labels else checkpoint.labels
    return replace(checkpoint, name=checkpoint.name[:MAX_NAME], labels=labels)
