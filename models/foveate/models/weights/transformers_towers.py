"""The vision towers of transformers' checkpoints, as configurations of the trunk.

A tower is the vision transformer of a checkpoint, with the pooling and the head of the class that the
checkpoint was saved from. What config.json leaves out is what transformers takes then.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.core.errors import SetupError
from foveate.models.layers.config import ViTConfig
from foveate.models.weights.config_from_weights import ratio
from foveate.models.weights.not_elastic import NotElastic
from foveate.models.weights.transformers_classes import (
    ACTIVATIONS,
    CLIP,
    DEFAULTS,
    HEADS,
    INTERPOLATE,
    SIGLIP,
    VISION_PARTS,
)

_MODULE = re.compile(r"^(vit|deit|ijepa|dinov2|dinov2_with_registers|vision_model)\.")
"""What transformers calls the tower within a larger model."""
_NO_VALUES = r"embeddings\.(mask_token|position_ids)$"
"""Tokens of pretraining, and buffers that only number the positions."""


@dataclass(frozen=True, slots=True)
class Tower:
    """A vision tower as its configuration describes it. The weights add the number of classes."""

    kind: str
    """The class of transformers, whose output the trunk has."""
    config: ViTConfig
    where: str
    """For error messages: the name of the configuration's file."""
    labels: Mapping[str, str] | None
    """Class names by index; None for an embedding, and where the file leaves them out."""
    antialias: bool | None
    """For a model that interpolates its position embeddings, whether it does so with an antialiasing filter;
    None for a model that takes images of its own size alone."""

    @property
    def classifies(self) -> bool:
        """Whether the output is class scores. Otherwise it is an embedding of the image."""
        return HEADS[self.kind].classifies

    def uses(self, name: str) -> bool:
        """Whether the output depends on the parameter of this name, as transformers saves it."""
        unused = HEADS[self.kind].unused
        return not re.match(rf"{_NO_VALUES}|{unused}" if unused else _NO_VALUES, _MODULE.sub("", name))

    def plain_names(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The parameters without the name of the tower within a larger model.

        transformers 5 saves some models with the name on a part of their parameters.
        """
        return {_MODULE.sub("", name): value for name, value in state.items()}

    def label_names(self, classes: int) -> tuple[str, ...] | None:
        """transformers' names of classes that the file does not name; None where it names them."""
        if not self.classifies or self.labels is not None:
            return None
        return tuple(f"LABEL_{index}" for index in range(classes))

    def fit(self, state: Mapping[str, Tensor], image_size: int) -> tuple[ViTConfig, dict[str, Tensor]]:
        """The configuration with the classes of the weights, and the weights for images of this size.

        state: parameters under timm's names. Raises SetupError where the weights show another shape than the
        configuration says, and NotElastic for a size that the patches do not tile.
        """
        state, config = dict(state), self.config
        if not config.registers and "reg_token" in state:
            del state["reg_token"]  # of no token
        shown = {"width": len(state["patch_embed.proj.weight"]), "depth": _depth(state)}
        for name, value in shown.items():
            if getattr(config, name) != value:
                raise SetupError(
                    f"{self.where} belongs to other weights: it says {name} {getattr(config, name)}, and the "
                    f"weights show {value}"
                )
        outputs = len(state["head.weight"]) if "head.weight" in state else 0
        classes = outputs if self.classifies else 0
        if self.classifies and not outputs and self.labels != {}:
            raise SetupError(f"{self.where} describes a {self.kind}, and the weights have no classifier")
        config = replace(config, classes=classes, projection=outputs - classes)
        if image_size == config.image_size:
            return config, state
        if image_size % config.patch_size:
            raise NotElastic(
                f"{self.where}: patches of {config.patch_size} pixels do not tile images of {image_size}"
            )
        resized = replace(config, image_size=image_size)
        return resized, state | {"pos_embed": self._positions(state["pos_embed"], image_size)}

    def _positions(self, positions: Tensor, image_size: int) -> Tensor:
        """Position embeddings (1, N, D) interpolated to an image size, as the model's own code does it."""
        own, side = (size // self.config.patch_size for size in (self.config.image_size, image_size))
        prefix = self.config.prefix if self.config.embed_prefix else 0
        if positions.ndim != 3 or positions.shape[1] != prefix + own**2:
            return positions  # attaching the weights reports the shape
        kept, grid = positions[:, :prefix].float(), positions[:, prefix:].float()
        grid = grid.reshape(1, own, own, -1).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, size=(side, side), mode="bicubic", antialias=bool(self.antialias))
        return torch.cat([kept, grid.flatten(2).transpose(1, 2)], dim=1)


def runs_in_trunk(table: Mapping[str, Any]) -> bool:
    """Whether a configuration of transformers is that of an architecture that the elastic trunk may run."""
    return table.get("model_type") in (*DEFAULTS, *VISION_PARTS)


def read_tower(table: Mapping[str, Any], where: str) -> Tower:
    """The tower of a configuration. Raises NotElastic for what the trunk does not represent exactly."""
    kind, model_type = _kind(table, where), str(table["model_type"])
    head, values = HEADS[kind], _values(table, where)
    if head.classifies and table.get("problem_type") not in (None, "single_label_classification"):
        raise NotElastic(f"{where}: scores of a {table['problem_type']} model are no shares of one class")
    _check(values, where)
    width = _number(values, "hidden_size", where)
    gated = bool(values.get("use_swiglu_ffn"))
    is_clip, is_siglip = model_type in CLIP, model_type in SIGLIP
    teacher, deit = kind == "DeiTForImageClassificationWithTeacher", model_type == "deit"
    config = ViTConfig(
        image_size=_side(values, "image_size", where),
        patch_size=_side(values, "patch_size", where),
        width=width,
        depth=_number(values, "num_hidden_layers", where),
        heads=_number(values, "num_attention_heads", where),
        mlp_ratio=ratio(_hidden(values, width, gated, where), width),
        classes=0,
        class_token=not is_siglip and model_type != "ijepa",
        distilled=teacher,
        # Without a head of its own, the distillation token takes part in attention alone: it is a register.
        registers=int(deit and not teacher) + int(values.get("num_register_tokens", 0)),
        embed_prefix=model_type != "dinov2_with_registers",
        pre_norm=is_clip,
        layer_scale=model_type in INTERPOLATE,
        qkv_bias=bool(values["qkv_bias"]),
        gated_mlp=gated,
        patch_bias=not is_clip,
        final_norm=head.final_norm,
        pool=head.pool,
        eps=_eps(values, where),
        activation="silu" if gated else ACTIVATIONS[values["hidden_act"]],
    )
    labels = table.get("id2label") if head.classifies else None
    return Tower(kind, config, where, labels, INTERPOLATE.get(model_type))


def _kind(table: Mapping[str, Any], where: str) -> str:
    """The class that the checkpoint was saved from."""
    saved = table.get("architectures") or [table.get("model_type")]
    kind = str(saved[0])
    if kind not in HEADS or table.get("model_type") not in HEADS[kind].model_types:
        raise NotElastic(
            f"{where} describes a {kind} of model_type {table.get('model_type')}, and of transformers' "
            f"classes the trunk runs these: {', '.join(HEADS)}"
        )
    return kind


def _values(table: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The vision part of a configuration, with transformers' defaults."""
    model_type = str(table["model_type"])
    part: Mapping[str, Any] = table
    if model_type in VISION_PARTS:
        # Old configurations hold the part twice, and transformers prefers vision_config_dict.
        parts = [table.get(name) or {} for name in ("vision_config", "vision_config_dict")]
        if not all(isinstance(each, Mapping) for each in parts):
            raise SetupError(f"{where}: vision_config is no table")
        part = {**parts[0], **parts[1]}
        model_type = VISION_PARTS[model_type]
    defaults = DEFAULTS[model_type]
    return {**defaults, **{name: part[name] for name in defaults if part.get(name) is not None}}


def _check(values: Mapping[str, Any], where: str) -> None:
    """Raise NotElastic for values that change the computation in a way that the trunk does not have."""
    if values["hidden_act"] not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise NotElastic(f"{where}: hidden_act {values['hidden_act']!r} is not one of {known}")
    if values["num_channels"] != 3:
        raise NotElastic(f"{where}: the model takes {values['num_channels']} channels, and images have 3")
    if not values.get("vision_use_head", True):
        raise NotElastic(f"{where}: without vision_use_head, the model has no embedding of an image")
    heads, width = (_number(values, name, where) for name in ("num_attention_heads", "hidden_size"))
    if (values["head_dim"] or width // heads) * heads != width:
        raise NotElastic(
            f"{where}: {heads} heads of {values['head_dim'] or 'equal'} features do not make up a width of "
            f"{width}"
        )


def _hidden(values: Mapping[str, Any], width: int, gated: bool, where: str) -> int:
    """Width of the MLP's hidden layer."""
    if "mlp_ratio" not in values:
        return _number(values, "intermediate_size", where)
    hidden = int(width * values["mlp_ratio"])
    # DINOv2's SwiGLU has two thirds of the width, rounded up to a multiple of 8.
    return (int(hidden * 2 / 3) + 7) // 8 * 8 if gated else hidden


def _number(values: Mapping[str, Any], name: str, where: str) -> int:
    """A whole number above 0."""
    value = values[name]
    if type(value) is not int or value < 1:
        raise SetupError(f"{where}: {name} is {value!r}, which is no whole number above 0")
    return value


def _eps(values: Mapping[str, Any], where: str) -> float:
    """The epsilon of the norms."""
    eps = values["layer_norm_eps"]
    if type(eps) not in (int, float):
        raise SetupError(f"{where}: layer_norm_eps is {eps!r}, which is no number")
    return float(eps)


def _side(values: Mapping[str, Any], name: str, where: str) -> int:
    """The side of a square image or patch, from a number or a pair."""
    sides = values[name] if isinstance(values[name], list) else [values[name]]
    if len(set(map(str, sides))) != 1:
        what = "images" if name == "image_size" else "patches"
        raise NotElastic(f"{where}: the model takes {what} of {sides}, and only square ones are served")
    return _number({name: sides[0]}, name, where)


def _depth(state: Mapping[str, Tensor]) -> int:
    return len({name.split(".")[1] for name in state if name.startswith("blocks.")})
