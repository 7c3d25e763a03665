"""Tiny vision towers of transformers with random weights, and transformers' own outputs for them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.support.torchvision_ops import import_transformers

transformers: Any = import_transformers()

SIDE = 64
LABELS = ("cat", "dog", "newt")
_SHAPE = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "image_size": SIDE}
_VIT = {**_SHAPE, "intermediate_size": 80, "patch_size": 16}
_DINO = {**_SHAPE, "patch_size": 8}
_TEXT = {
    "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 2,
    "vocab_size": 50, "max_position_embeddings": 8, "projection_size": 48,
    "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
_NAMED = {"id2label": dict(enumerate(LABELS)), "label2id": {label: i for i, label in enumerate(LABELS)}}
PREPROCESSOR = {
    "do_resize": True, "size": {"height": SIDE, "width": SIDE}, "resample": 3, "do_rescale": True,
    "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}  # fmt: skip


def _plain(name: str, **values: Any) -> Callable[..., Any]:
    """A maker of a class whose configuration holds its vision part's values itself."""
    family = name.partition("For")[0].removesuffix("Model").removesuffix("ModelWithProjection")

    def make(**changes: Any) -> Any:
        config = getattr(transformers, f"{family}Config")(**{**values, **changes})
        return getattr(transformers, name)(config)

    return make


def _two_towers(name: str, family: str) -> Callable[..., Any]:
    """A maker of a class of images and texts."""

    def make(projection: int = 24, **changes: Any) -> Any:
        vision = {key: changes.pop(key) for key in list(changes) if key not in ("id2label", "label2id")}
        config = getattr(transformers, f"{family}Config")(
            vision_config={**_VIT, **vision}, text_config=_TEXT, projection_dim=projection, **changes
        )
        return getattr(transformers, name)(config)

    return make


CLASSIFIERS: dict[str, Callable[..., Any]] = {
    "ViTForImageClassification": _plain("ViTForImageClassification", **_VIT, **_NAMED),
    "DeiTForImageClassification": _plain("DeiTForImageClassification", **_VIT, **_NAMED),
    "DeiTForImageClassificationWithTeacher": _plain(
        "DeiTForImageClassificationWithTeacher", **_VIT, **_NAMED
    ),
    "ViTMSNForImageClassification": _plain("ViTMSNForImageClassification", **_VIT, **_NAMED),
    "IJepaForImageClassification": _plain("IJepaForImageClassification", **_VIT, **_NAMED),
    "Dinov2ForImageClassification": _plain("Dinov2ForImageClassification", **_DINO, **_NAMED),
    "Dinov2WithRegistersForImageClassification": _plain(
        "Dinov2WithRegistersForImageClassification", **_DINO, **_NAMED
    ),
    "CLIPForImageClassification": lambda **c: _two_towers("CLIPForImageClassification", "CLIP")(
        **_NAMED, **c
    ),
    "SiglipForImageClassification": lambda **c: _two_towers("SiglipForImageClassification", "Siglip")(
        **_NAMED, **c
    ),
}
EMBEDDERS: dict[str, Callable[..., Any]] = {
    "ViTModel": _plain("ViTModel", **_VIT),
    "DeiTModel": _plain("DeiTModel", **_VIT),
    "ViTMSNModel": _plain("ViTMSNModel", **_VIT),
    "ViTMAEModel": _plain("ViTMAEModel", **_VIT, mask_ratio=0.0),
    "ViTMAEForPreTraining": _plain(
        "ViTMAEForPreTraining", **_VIT, mask_ratio=0.0, decoder_hidden_size=32, decoder_num_attention_heads=2,
        decoder_num_hidden_layers=1, decoder_intermediate_size=48,
    ),
    "IJepaModel": _plain("IJepaModel", **_VIT),
    "Dinov2Model": _plain("Dinov2Model", **_DINO),
    "Dinov2WithRegistersModel": _plain("Dinov2WithRegistersModel", **_DINO),
    "CLIPModel": _two_towers("CLIPModel", "CLIP"),
    "CLIPVisionModel": _plain("CLIPVisionModel", **_VIT),
    "CLIPVisionModelWithProjection": _plain("CLIPVisionModelWithProjection", **_VIT, projection_dim=24),
    "SiglipModel": _two_towers("SiglipModel", "Siglip"),
    "SiglipVisionModel": _plain("SiglipVisionModel", **_VIT),
}  # fmt: skip
TOWERS = CLASSIFIERS | EMBEDDERS


def output(model: Any, images: Tensor) -> Tensor:
    """What transformers answers for normalised images: class scores, or the embedding of its model card."""
    name = type(model).__name__
    with torch.inference_mode():
        if name in CLASSIFIERS:
            scores: Tensor = model(images).logits
            return scores
        if name in ("CLIPModel", "SiglipModel"):
            embedding: Tensor = model.get_image_features(images).pooler_output
            return embedding
        out = (model.vit if name == "ViTMAEForPreTraining" else model)(images)
        if name == "CLIPVisionModelWithProjection":
            projected: Tensor = out.image_embeds
            return projected
        if name.startswith(("CLIP", "Siglip")):
            pooled: Tensor = out.pooler_output
            return pooled
        tokens: Tensor = out.last_hidden_state
        return tokens.mean(1) if name == "IJepaModel" else tokens[:, 0]


def perturbed(model: Any, seed: int = 3) -> Any:
    """The model with weights far from their small, or equal, initial values."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            fan_in = parameter[0].numel() if parameter.ndim in (2, 4) else 4
            gain = parameter.ndim == 1 and bool((parameter != 0).all())
            parameter.copy_(0.7 + 0.2 * noise if gain else noise * fan_in**-0.5)
    return model.eval()


def saved(folder: Path, model: Any, preprocessor: dict[str, Any] | None = PREPROCESSOR, **how: Any) -> Path:
    """Write a model with perturbed weights, and its preprocessing, to a folder."""
    perturbed(model).save_pretrained(folder, **how)
    if preprocessor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return folder
