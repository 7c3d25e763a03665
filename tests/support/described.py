"""Folders with weights and what describes them, as timm, transformers and users write them."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from tests.support.checkpoints import LABELS, SMALL, weights

TIMM = {
    "architecture": "vit_tiny_patch16_224",
    "num_classes": 3,
    "num_features": 128,
    "global_pool": "token",
    "label_names": list(LABELS),
    "model_args": {"img_size": 64, "embed_dim": 128, "depth": 2, "num_heads": 4},
    "pretrained_cfg": {
        "input_size": [3, 64, 64], "fixed_input_size": True, "crop_pct": 0.9, "crop_mode": "squash",
        "interpolation": "bilinear", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
    },
}  # fmt: skip
"""What timm's save_for_hf writes for a model of the size of SMALL, with four heads."""


def write_described(
    folder: Path, description: Any, state: dict[str, Tensor] | None = None, file: str = "config.json"
) -> Path:
    """Write model.safetensors and a description into a folder."""
    folder.mkdir(exist_ok=True)
    save_file(weights(SMALL) if state is None else state, folder / "model.safetensors")
    (folder / file).write_text(description if isinstance(description, str) else json.dumps(description))
    return folder
