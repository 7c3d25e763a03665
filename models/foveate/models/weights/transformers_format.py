"""The config.json and preprocessor that transformers' save_pretrained writes for a classifier."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foveate.core.errors import SetupError
from foveate.models.weights.json_file import check_label_names, read_table
from foveate.models.weights.preprocessing import parse_preprocessing

_CLASSES = (
    "ViTForImageClassification",
    "DeiTForImageClassification",
    "DeiTForImageClassificationWithTeacher",
)
_PREPROCESSORS = (("preprocessor_config.json", None), ("processor_config.json", "image_processor"))
"""Files that can hold the preprocessing, and the entry of the file that holds it; None: the whole file."""
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "quick_gelu": "quick_gelu",
}
_EPS = 1e-12
"""transformers' default of ViT and DeiT."""


def is_transformers_format(table: Mapping[str, Any]) -> bool:
    """Whether a JSON object is a configuration of transformers."""
    return isinstance(table.get("model_type"), str) and "architecture" not in table


def runs_in_trunk(table: Mapping[str, Any]) -> bool:
    """Whether a configuration of transformers is that of a ViT or DeiT, which the elastic trunk runs."""
    return table.get("model_type") in ("vit", "deit")


def transformers_values(
    table: Mapping[str, Any], folder: Path, where: str
) -> tuple[dict[str, Any], dict[str, int]]:
    """Values for `CheckpointOptions`, and the shape that the weights must show.

    Raises SetupError for a model that is no ViT or DeiT classifier, and for an unreadable preprocessor.
    """
    kind = (table.get("architectures") or [table.get("model_type")])[0]
    if not runs_in_trunk(table) or kind not in _CLASSES:
        raise SetupError(f"{where} describes a {kind}, and of transformers' classifiers these are served: "
                         f"{', '.join(_CLASSES)}")  # fmt: skip
    activation = table.get("hidden_act", "gelu")
    if activation not in _ACTIVATIONS:
        raise SetupError(f"{where}: hidden_act {activation!r} is not one of {', '.join(_ACTIVATIONS)}")
    check_label_names(table, "id2label", where)
    values = {
        "heads": table.get("num_attention_heads", 12),
        "eps": table.get("layer_norm_eps", _EPS),
        "activation": _ACTIVATIONS[activation],
        "pool": "token",
        "labels": table.get("id2label"),
    }
    expected = {
        "width": table.get("hidden_size", 768),
        "depth": table.get("num_hidden_layers", 12),
        "image_size": _side(table.get("image_size", 224), where),
    }
    return values | _preparation(folder, expected["image_size"]), expected


def _side(size: Any, where: str) -> int:
    """The side of a square image, from a number or a pair."""
    sides = size if isinstance(size, list) else [size]
    if len(set(map(str, sides))) != 1 or type(sides[0]) is not int:
        raise SetupError(f"{where}: the model takes images of {size}, and only square ones are served")
    return int(sides[0])


def _preparation(folder: Path, side: int) -> dict[str, Any]:
    """Mean, deviation, crop and filter of the preprocessor beside the configuration; empty without one."""
    for file, key in _PREPROCESSORS:
        path = folder / file
        if not path.is_file():
            continue
        table = read_table(path)
        if key is not None:
            table = table.get(key) or {}
        if not table:
            continue
        prepared = parse_preprocessing(table, file)
        if prepared.side != side:
            raise SetupError(f"{file} makes images of {prepared.side} pixels, and config.json takes {side}")
        if prepared.reversed:
            raise SetupError(f"{file} asks for channels in the order blue, green, red, which is not served")
        return {
            "mean": prepared.mean,
            "std": prepared.std,
            "crop_pct": prepared.input.crop_pct,
            "crop_mode": prepared.input.crop_mode,
            "interpolation": prepared.input.interpolation,
        }
    return {}
