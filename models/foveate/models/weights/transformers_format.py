"""The config.json and preprocessor that transformers' save_pretrained writes for a vision transformer."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foveate.core.errors import SetupError
from foveate.models.weights.json_file import check_label_names, read_table
from foveate.models.weights.preprocessing import edge, parse_preprocessing
from foveate.models.weights.transformers_towers import Tower, read_tower, runs_in_trunk

__all__ = ["is_transformers_format", "runs_in_trunk", "transformers_values"]

_PREPROCESSORS = (("preprocessor_config.json", None), ("processor_config.json", "image_processor"))
"""Files that can hold the preprocessing, and the entry of the file that holds it; None: the whole file."""
_SQUARE_224, _EDGE_224 = {"height": 224, "width": 224}, {"shortest_edge": 224}
_CLIP_VALUES = {
    "size": _EDGE_224, "crop_size": 224, "do_center_crop": True, "resample": 3,
    "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
}  # fmt: skip
_HALF = {"image_mean": 0.5, "image_std": 0.5}
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "ViT": {"size": _SQUARE_224, "resample": 2, "do_center_crop": False, **_HALF},
    "DeiT": {"size": {"height": 256, "width": 256}, "crop_size": 224, "resample": 3, **_HALF},
    "Siglip": {"size": _SQUARE_224, "resample": 3, "do_center_crop": False, **_HALF},
    "CLIP": _CLIP_VALUES,
    "Bit": _CLIP_VALUES,
}  # fmt: skip
"""What transformers' preprocessors take for the values that a file leaves out, by their name."""
_USUAL = {"deit": "DeiT", "clip": "CLIP", "clip_vision_model": "CLIP", "siglip": "Siglip",
          "siglip_vision_model": "Siglip", "dinov2": "Bit", "dinov2_with_registers": "Bit"}  # fmt: skip
"""The preprocessor of a model_type, where the file does not name it; ViT's for the others."""
_FILTERS = {2: "bilinear", 3: "bicubic"}
"""Pillow's numbers of the filters that the decoder has."""
_STEPS = frozenset({
    "do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb", "do_flip_channel_order",
    "do_reduce_labels",
})  # fmt: skip
"""The steps of preprocessors that are known here; the last one changes masks alone."""


def is_transformers_format(table: Mapping[str, Any]) -> bool:
    """Whether a JSON object is a configuration of transformers."""
    return isinstance(table.get("model_type"), str) and "architecture" not in table


def transformers_values(table: Mapping[str, Any], folder: Path, where: str) -> tuple[dict[str, Any], Tower]:
    """Values for `CheckpointOptions`, and the vision tower.

    Raises NotElastic for a model that the trunk does not represent exactly, and SetupError for an unreadable
    preprocessor or one that does what the decoder cannot do.
    """
    tower = read_tower(table, where)
    check_label_names(table, "id2label", where)
    config = tower.config
    values = {
        "heads": config.heads,
        "eps": config.eps,
        "activation": config.activation,
        "pool": config.pool,
        "labels": tower.labels,
    }
    return values | _preparation(folder, table, tower), tower


def _preparation(folder: Path, config: Mapping[str, Any], tower: Tower) -> dict[str, Any]:
    """Size, mean, deviation, crop and filter of the preprocessor in a folder; empty without one."""
    for file, key in _PREPROCESSORS:
        path = folder / file
        if not path.is_file():
            continue
        table = read_table(path)
        if key is not None:
            table = table.get(key) or {}
        if not table:
            continue
        return _prepared(_with_defaults(table, str(config["model_type"])), file, tower)
    return {}


def _with_defaults(table: Mapping[str, Any], model_type: str) -> dict[str, Any]:
    """A preprocessor's table with what transformers takes for the values that it leaves out.

    A single number as the size means a square for some preprocessors, and the shorter side for the others.
    """
    usual = _USUAL.get(model_type, "ViT")
    name = str(table.get("image_processor_type") or table.get("feature_extractor_type") or usual)
    name = re.sub(r"(FeatureExtractor|ImageProcessor(Fast|Pil)?)$", "", name)
    stated = {key: value for key, value in table.items() if value is not None}
    defaults = dict(_DEFAULTS.get(name, {}))
    if "size" in stated:  # the usual crop belongs to the usual size
        defaults.pop("crop_size", None)
    values = {**defaults, **stated}
    if type(values.get("size")) is int and "height" in _DEFAULTS.get(name, {}).get("size", ()):
        values["size"] = {"height": values["size"], "width": values["size"]}
    return values


def _prepared(table: Mapping[str, Any], file: str, tower: Tower) -> dict[str, Any]:
    """The options that a preprocessor's complete table states."""
    _check_steps(table, file)
    prepared = parse_preprocessing(table, file)
    own = tower.config.image_size
    if prepared.side != own and tower.antialias is None:
        raise SetupError(f"{file} makes images of {prepared.side} pixels, and config.json takes {own}")
    return {
        "mean": prepared.mean,
        "std": prepared.std,
        "crop_pct": prepared.input.crop_pct,
        "crop_mode": prepared.input.crop_mode,
        "interpolation": prepared.input.interpolation,
        "image_size": prepared.side,
    }


def _check_steps(table: Mapping[str, Any], file: str) -> None:
    """Raise SetupError for what the decoder does not do."""
    unknown = sorted(
        key for key, value in table.items() if key.startswith("do_") and value and key not in _STEPS
    )
    if unknown or table.get("crop_pct"):
        raise SetupError(f"{file} asks for {(*unknown, 'crop_pct')[0]}, which the decoder does not do")
    if table.get("do_flip_channel_order"):
        raise SetupError(f"{file} asks for channels in the order blue, green, red, which is not served")
    if table.get("do_resize", True) and table.get("resample", 2) not in _FILTERS:
        raise SetupError(
            f"{file} resizes with Pillow's filter {table['resample']}, and the decoder has 2 (bilinear) and "
            "3 (bicubic)"
        )
    crop = table.get("crop_size") if table.get("do_center_crop", True) else None
    for size in (table.get("size"), crop):
        if isinstance(size, Mapping) and size.get("height") != size.get("width"):
            raise SetupError(f"{file} makes images of {size}, and only square ones are served")
    if crop is not None and not table.get("do_resize", True):
        raise SetupError(f"{file} crops images without a resize, which the decoder does not do")
    cropped, resized = edge(crop, file), edge(table.get("size"), file)
    if cropped is not None and resized is not None and cropped > resized:
        raise SetupError(f"{file} crops {crop} from {table['size']}, which the decoder does not fill up")
