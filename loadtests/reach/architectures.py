"""Tiny configurations of transformers' architectures, for tests and for `make bench-reach`."""

from importlib import import_module
from typing import Any

import torch

from foveate.models.weights.torchvision_operators import declare_missing_operators

SIDE, CLASSES = 96, 7
LABELS = {index: f"label {index}" for index in range(CLASSES)}
STAGES = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 16, 16]}
ATTENTION = {"image_size": SIDE, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
PLAIN = {**ATTENTION, "patch_size": 8, "intermediate_size": 64}
OPAQUE: dict[str, dict[str, Any]] = {
    "Beit": {**ATTENTION, "intermediate_size": 64, "use_relative_position_bias": True},
    "Bit": {**STAGES, "embedding_size": 8, "num_groups": 4},
    "ConvNext": STAGES,
    "ConvNextV2": STAGES,
    "Data2VecVision": {**ATTENTION, "intermediate_size": 64},
    "EfficientNet": {"image_size": SIDE, "width_coefficient": 0.25, "depth_coefficient": 0.2,
                     "hidden_dim": 320},
    "FocalNet": {"image_size": SIDE, "embed_dim": 8, "depths": [1, 1], "focal_levels": [2, 2],
                 "focal_windows": [3, 3]},
    "HGNetV2": {"stem_channels": [3, 8, 8], "stage_in_channels": [8, 16], "stage_mid_channels": [8, 8],
                "stage_out_channels": [16, 32], "stage_num_blocks": [1, 1], "stage_downsample": [False, True],
                "stage_light_block": [False, True], "stage_kernel_size": [3, 5],
                "stage_numb_of_layers": [2, 2],
                "hidden_sizes": [16, 32], "depths": [1, 1], "embedding_size": 8},
    "Levit": {"image_size": SIDE, "hidden_sizes": [16, 24, 32], "num_attention_heads": [1, 2, 2],
              "depths": [1, 1, 1], "key_dim": [8, 8, 8]},
    "MobileNetV1": {"image_size": SIDE, "depth_multiplier": 0.25},
    "MobileNetV2": {"image_size": SIDE, "depth_multiplier": 0.25},
    "MobileViT": {"image_size": SIDE, "hidden_sizes": [16, 24, 32],
                  "neck_hidden_sizes": [8, 16, 16, 24, 32, 32, 32]},
    "PoolFormer": STAGES,
    "RegNet": {**STAGES, "embedding_size": 8, "groups_width": 4},
    "ResNet": {**STAGES, "embedding_size": 8},
    "Segformer": {**STAGES, "num_attention_heads": [1, 1, 2, 2]},
    "SwiftFormer": {"image_size": SIDE, "depths": [1, 1, 1, 1], "embed_dims": [8, 8, 16, 16]},
    "Swin": {"image_size": SIDE, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4},
    "Swinv2": {"image_size": SIDE, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4},
}  # fmt: skip
"""Image classifiers that run as they are, by the name of their configuration without `Config`."""
ELASTIC: dict[str, dict[str, Any]] = {
    "ViT": PLAIN,
    "DeiT": PLAIN,
    "ViTMSN": PLAIN,
    "Dinov2": {**ATTENTION, "patch_size": 8},
    "Dinov2WithRegisters": {**ATTENTION, "patch_size": 8},
}
"""Image classifiers that the elastic trunk may run, in the same form."""


def classifier(name: str, **changes: Any) -> Any:
    """A tiny classifier of transformers with random weights, whose norms and scales are not trivial.

    Raises AttributeError for an architecture that this version of transformers does not have.
    """
    declare_missing_operators()
    transformers = import_module("transformers")
    values = (OPAQUE | ELASTIC)[name] | {"id2label": LABELS} | changes
    config = getattr(transformers, f"{name}Config")(**values)
    torch.manual_seed(0)
    built = getattr(transformers, f"{name}ForImageClassification")(config).eval()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return built


def processor(**changes: Any) -> dict[str, Any]:
    """The table of a preprocessor of images of SIDE pixels."""
    return {
        "do_resize": True,
        "size": {"height": SIDE, "width": SIDE},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.4, 0.5, 0.6],
        "image_std": [0.2, 0.25, 0.3],
    } | changes
