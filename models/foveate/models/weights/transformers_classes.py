"""The classes of transformers whose vision tower the trunk runs: their heads, and their usual values."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from foveate.core.checkpoint_options import Activation, Pool

_VIT: Mapping[str, Any] = {
    "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
    "hidden_act": "gelu", "layer_norm_eps": 1e-12, "image_size": 224, "patch_size": 16, "num_channels": 3,
    "qkv_bias": True, "head_dim": None,
}  # fmt: skip
_DINOV2 = {**_VIT, "layer_norm_eps": 1e-6, "mlp_ratio": 4, "use_swiglu_ffn": False}
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "vit": _VIT,
    "deit": _VIT,
    "vit_mae": _VIT,
    "vit_msn": {**_VIT, "layer_norm_eps": 1e-6},
    "ijepa": _VIT,
    "dinov2": {**_DINOV2, "patch_size": 14},
    "dinov2_with_registers": {**_DINOV2, "num_register_tokens": 4},
    "clip_vision_model": {**_VIT, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "patch_size": 32},
    "siglip_vision_model": {
        **_VIT,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
        "vision_use_head": True,
    },
}
"""What transformers takes for the values that a configuration leaves out, by model_type."""
VISION_PARTS = {"clip": "clip_vision_model", "siglip": "siglip_vision_model"}
"""Models of images and texts, and the model_type of their `vision_config`."""
ACTIVATIONS: Mapping[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "quick_gelu": "quick_gelu",
}
INTERPOLATE = {"dinov2": False, "dinov2_with_registers": True}
"""Models that interpolate their position embeddings to any image, and whether with an antialiasing filter.
The others take images of their own size alone."""
_TEXT = r"text_model\.|text_projection\.|logit_scale$|logit_bias$"


@dataclass(frozen=True, slots=True)
class PooledHead:
    """What a class of transformers does with the tokens after the last block."""

    model_types: tuple[str, ...]
    pool: Pool = "token"
    classifies: bool = False
    final_norm: bool = True
    unused: str = ""
    """A pattern of the parameters that do not influence the output."""


_POOLER = r"pooler\."
"""A layer that ViTModel was pretrained with, or that is random: the embedding is the class token itself."""
CLIP, SIGLIP = ("clip", "clip_vision_model"), ("siglip", "siglip_vision_model")
HEADS: Mapping[str, PooledHead] = {
    "ViTForImageClassification": PooledHead(("vit",), classifies=True),
    "ViTModel": PooledHead(("vit",), unused=_POOLER),
    "DeiTForImageClassification": PooledHead(("deit",), classifies=True),
    "DeiTForImageClassificationWithTeacher": PooledHead(("deit",), classifies=True),
    "DeiTModel": PooledHead(("deit",), unused=_POOLER),
    "ViTMSNForImageClassification": PooledHead(("vit_msn",), classifies=True),
    "ViTMSNModel": PooledHead(("vit_msn",)),
    "ViTMAEModel": PooledHead(("vit_mae",)),
    "ViTMAEForPreTraining": PooledHead(("vit_mae",), unused=r"decoder\."),
    "IJepaForImageClassification": PooledHead(("ijepa",), "avg", classifies=True),
    "IJepaModel": PooledHead(("ijepa",), "avg", unused=_POOLER),
    "Dinov2ForImageClassification": PooledHead(("dinov2",), "token_avg", classifies=True),
    "Dinov2Model": PooledHead(("dinov2",)),
    "Dinov2WithRegistersForImageClassification": PooledHead(
        ("dinov2_with_registers",), "token_avg", classifies=True
    ),
    "Dinov2WithRegistersModel": PooledHead(("dinov2_with_registers",)),
    "CLIPModel": PooledHead(CLIP, unused=_TEXT),
    "CLIPVisionModel": PooledHead(CLIP, unused=rf"{_TEXT}|visual_projection\."),
    "CLIPVisionModelWithProjection": PooledHead(CLIP, unused=_TEXT),
    "CLIPForImageClassification": PooledHead(
        CLIP, "avg", classifies=True, final_norm=False,
        unused=rf"{_TEXT}|visual_projection\.|post_layernorm\.",
    ),
    "SiglipModel": PooledHead(SIGLIP, "map", unused=_TEXT),
    "SiglipVisionModel": PooledHead(SIGLIP, "map", unused=_TEXT),
    "SiglipForImageClassification": PooledHead(
        SIGLIP, "avg", classifies=True, unused=rf"{_TEXT}|head\."
    ),
}  # fmt: skip
"""The classes of transformers that the trunk runs."""
