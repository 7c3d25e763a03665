"""The config.json that timm's save_for_hf and push_to_hf_hub write beside a model's weights."""

import logging
from collections.abc import Mapping
from typing import Any, get_args

import torch

from foveate.core.checkpoint_options import Activation
from foveate.core.errors import SetupError
from foveate.models.weights.json_file import check_label_names
from foveate.models.weights.stated_size import check_counts, limited_to
from foveate.models.weights.timm_architectures import architecture, unseen_fields
from foveate.models.weights.timm_config import import_timm, sentence, vit_config

log = logging.getLogger(__name__)

NEAREST_CROP: Mapping[str, str] = {"border": "center"}
"""The decoder's crop for those of timm that it does not have."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet: what timm takes where its configuration names none."""
CROP_PCT = 0.875
"""What timm takes where its configuration names none."""
_SHOWN_BY_WEIGHTS = frozenset({
    "class_token", "depth", "embed_dim", "fc_norm", "final_norm", "in_chans", "init_values", "mlp_ratio",
    "no_embed_class", "num_classes", "patch_size", "pre_norm", "qk_norm", "qkv_bias", "reg_tokens",
})  # fmt: skip
_WITHOUT_EFFECT = frozenset({
    "attn_drop_rate", "drop_path_rate", "drop_rate", "dynamic_img_size", "fix_init", "img_size",
    "patch_drop_rate", "pos_drop_rate", "proj_drop_rate", "strict_img_size", "weight_init",
})  # fmt: skip
"""Arguments that change training alone, or the input size, which is read from the configuration."""
_READ = frozenset({"act_layer", "global_pool", "num_heads"})


def is_timm_format(table: Mapping[str, Any]) -> bool:
    """Whether a JSON object is timm's: today's layout, or the flat one of older versions."""
    return isinstance(table.get("architecture"), str)


def timm_values(table: Mapping[str, Any], where: str) -> tuple[dict[str, Any], dict[str, int]]:
    """Values for `CheckpointOptions`, and the width, depth and classes that the weights must show.

    What the file leaves out is what timm takes then. timm itself is needed only for architectures and
    arguments that are not known here. Raises SetupError for what the trunk does not have.
    """
    shape, expected = _shape(table, model_arguments(table, where), where)
    classes = classes_of(table)
    if classes is not None:
        expected["classes"] = classes
    return shape | preparation_values(table, where), expected


def model_arguments(table: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """The arguments of the model's constructor. Raises SetupError where they are no table."""
    arguments = table.get("model_args") or {}
    if not isinstance(arguments, Mapping):
        raise SetupError(f"{where}: model_args is not a table")
    return arguments


def classes_of(table: Mapping[str, Any]) -> int | None:
    """The number of classes that the file states; None where it states none."""
    classes = table.get("num_classes", _prepared(table).get("num_classes"))
    return classes if isinstance(classes, int) else None


def preparation_values(table: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Values for `CheckpointOptions` of the preparation of images, and the labels. Raises SetupError."""
    prepared = _prepared(table)
    return {
        "mean": prepared.get("mean") or MEAN,
        "std": prepared.get("std") or STD,
        "crop_pct": prepared.get("crop_pct") or CROP_PCT,
        "crop_mode": nearest_crop(prepared.get("crop_mode") or "center", where),
        "interpolation": prepared.get("interpolation") or "bicubic",
        "image_size": _image_size(prepared, model_arguments(table, where), where),
        "labels": _labels(table, prepared, where),
    }


def nearest_crop(crop_mode: str, where: str) -> str:
    """The decoder's name of one of timm's crops, or the nearest that it has, with a warning."""
    if crop_mode in NEAREST_CROP:
        log.warning("%s pads images to a square; here the middle of each image is cropped", where)
    return NEAREST_CROP.get(crop_mode, crop_mode)


def _prepared(table: Mapping[str, Any]) -> Mapping[str, Any]:
    """The table with the preparation: a part of today's layout, and the whole of the older one."""
    nested = table.get("pretrained_cfg")
    return nested if isinstance(nested, Mapping) else table


def _shape(
    table: Mapping[str, Any], arguments: Mapping[str, Any], where: str
) -> tuple[dict[str, Any], dict[str, int]]:
    """Architecture, heads, epsilon, activation and pooling, and the width and depth that belong to them."""
    name = table["architecture"].partition(".")[0]
    known = architecture(name)
    activation = arguments.get("act_layer") or (known and known.activation)
    unknown = arguments.keys() - _SHOWN_BY_WEIGHTS - _WITHOUT_EFFECT - _READ
    if known is None or unknown or activation not in get_args(Activation):
        return _shape_by_timm(table["architecture"], arguments, where)
    pool = arguments.get("global_pool") or table.get("global_pool") or known.pool
    values = {
        "architecture": name,
        "heads": arguments.get("num_heads", known.heads),
        "eps": known.eps,
        "activation": activation,
        "pool": pool,
    }
    width, depth = arguments.get("embed_dim", known.width), arguments.get("depth", known.depth)
    return values, {"width": width, "depth": depth}


def _shape_by_timm(
    name: str, arguments: Mapping[str, Any], where: str
) -> tuple[dict[str, Any], dict[str, int]]:
    """The same from timm's own module, without weights."""
    timm = import_timm(f"the {name} of {where}")
    if not timm.is_model(name.partition(".")[0]):
        raise SetupError(
            f"{where} names the architecture {name}, which timm {timm.__version__} does not have"
        )
    check_counts(arguments, f"model_args of {where}")
    try:
        with torch.device("meta"), limited_to(None, where):
            module = timm.create_model(name.partition(".")[0], pretrained=False, **arguments)
    except (RuntimeError, ValueError, TypeError, KeyError, AssertionError) as error:
        raise SetupError(f"timm cannot make the {name} of {where}: {sentence(error)}") from error
    config = vit_config(module, f"the {name} of {where}")
    values = {name: getattr(config, name) for name in ("heads", "eps", "activation", "pool")}
    architecture_name = name.partition(".")[0]
    known = architecture(architecture_name)
    if known is not None:
        values["architecture"] = architecture_name
    unseen = {n: value for n, value in unseen_fields(config).items() if n != "image_size"}
    stated = {n: value for n, value in (known.config if known else {}).items() if n != "image_size"}
    if unseen != stated:
        raise SetupError(
            f"{where}: the {name} with these arguments has rotary positions or an attention pooling that is "
            "not that of the architecture, and weights do not show which"
        )
    return values, {"width": config.width, "depth": config.depth}


def _image_size(prepared: Mapping[str, Any], arguments: Mapping[str, Any], where: str) -> int | None:
    """Side of the input in pixels. timm interpolates position embeddings of another grid to it."""
    stated = prepared.get("input_size")
    sides = list(stated[1:]) if isinstance(stated, list | tuple) else []
    size = arguments.get("img_size")
    if size is not None and not arguments.get("dynamic_img_size"):
        sides = list(size) if isinstance(size, list | tuple) else [size, size]
    if not sides:
        return None
    if len(sides) != 2 or sides[0] != sides[1] or type(sides[0]) is not int:
        raise SetupError(f"{where}: the model takes images of {sides}, and only square ones are served")
    return int(sides[0])


def _labels(table: Mapping[str, Any], prepared: Mapping[str, Any], where: str) -> Any:
    """Descriptions of the classes, else their names; None where there are neither. Raises SetupError."""
    for source in (table, prepared):
        for entry in ("label_names", "labels", "label_descriptions"):
            check_label_names(source, entry, where)
    names = table.get("label_names") or prepared.get("label_names") or table.get("labels")
    described = table.get("label_descriptions") or prepared.get("label_descriptions")
    if isinstance(described, Mapping) and names:
        if isinstance(names, Mapping):
            return {index: described.get(name, name) for index, name in names.items()}
        return [described.get(name, name) for name in names]
    return list(described) if described and not isinstance(described, Mapping) else names or None
