"""Tiny checkpoints of transformers with random weights, and helpers for their tests."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from foveate.core.outcome import Result
from foveate.models import huggingface
from foveate.models.huggingface import PretrainedRunner
from tests.support.torchvision_ops import import_transformers

transformers: Any = import_transformers()

SIDE, FRAMES = 96, 8
RANGE = {"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}
SQUARE = {
    "size": {"height": SIDE, "width": SIDE},
    "image_mean": [0.48, 0.45, 0.4],
    "image_std": [0.2, 0.25, 0.3],
}
CLIP = {
    "size": {"shortest_edge": SIDE},
    "do_center_crop": True,
    "crop_size": {"height": SIDE, "width": SIDE},
    "image_mean": [0.45, 0.4, 0.5],
    "image_std": [0.225, 0.2, 0.25],
}
LABELS = ("sky", "tree", "road", "house", "car")
STAGES = ["stage1", "stage2", "stage3", "stage4"]


def segformer(**changes: Any) -> Any:
    return transformers.SegformerForSemanticSegmentation(
        transformers.SegformerConfig(
            depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 16, 16], num_attention_heads=[1, 1, 2, 2],
            decoder_hidden_size=16, **_labelled(changes),
        )
    )  # fmt: skip


def mask2former(**changes: Any) -> Any:
    backbone = transformers.SwinConfig(
        embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4, out_features=STAGES
    )
    return transformers.Mask2FormerForUniversalSegmentation(
        transformers.Mask2FormerConfig(
            backbone_config=backbone, feature_size=32, mask_feature_size=16, hidden_dim=32, num_queries=7,
            encoder_feedforward_dim=32, dim_feedforward=32, encoder_layers=3, decoder_layers=3,
            num_attention_heads=4, **_labelled(changes),
        )
    )  # fmt: skip


def upernet(**changes: Any) -> Any:
    backbone = transformers.ConvNextConfig(
        hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], out_features=STAGES, layer_scale_init_value=0.5
    )
    return transformers.UperNetForSemanticSegmentation(
        transformers.UperNetConfig(
            backbone_config=backbone, hidden_size=16, auxiliary_channels=8, auxiliary_in_channels=16,
            **_labelled(changes),
        )
    )  # fmt: skip


def upernet_swin(**changes: Any) -> Any:
    backbone = transformers.SwinConfig(
        embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4, out_features=STAGES
    )
    return transformers.UperNetForSemanticSegmentation(
        transformers.UperNetConfig(
            backbone_config=backbone, hidden_size=16, auxiliary_channels=8, auxiliary_in_channels=32,
            **_labelled(changes),
        )
    )  # fmt: skip


def dpt(**changes: Any) -> Any:
    return transformers.DPTForSemanticSegmentation(
        transformers.DPTConfig(
            hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=48, image_size=SIDE,
            patch_size=16, backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 8, 16, 16],
            fusion_hidden_size=16, auxiliary_loss_weight=0.4, **_labelled(changes),
        )
    )  # fmt: skip


def beit(**changes: Any) -> Any:
    return transformers.BeitForSemanticSegmentation(
        transformers.BeitConfig(
            hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=48, image_size=SIDE,
            patch_size=16, out_indices=[0, 1, 2, 3], use_relative_position_bias=True, pool_scales=[1, 2],
            use_auxiliary_head=False, **_labelled(changes),
        )
    )  # fmt: skip


def mobilevit(**changes: Any) -> Any:
    return transformers.MobileViTForSemanticSegmentation(
        transformers.MobileViTConfig(
            hidden_sizes=[16, 16, 16], neck_hidden_sizes=[8, 8, 8, 16, 16, 16, 16], num_attention_heads=2,
            mlp_ratio=1.0, image_size=SIDE,
            aspp_out_channels=16, atrous_rates=[1, 2, 3], **_labelled(changes),
        )
    )  # fmt: skip


def maskformer(**changes: Any) -> Any:
    backbone = transformers.SwinConfig(
        embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4, out_features=STAGES
    )
    decoder = transformers.DetrConfig(
        d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16, decoder_ffn_dim=16,
        encoder_attention_heads=2, decoder_attention_heads=2, num_queries=6,
    )  # fmt: skip
    return transformers.MaskFormerForInstanceSegmentation(
        transformers.MaskFormerConfig(
            backbone_config=backbone, decoder_config=decoder, fpn_feature_size=32, mask_feature_size=16,
            **_labelled(changes),
        )
    )  # fmt: skip


_VIT = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}


def videomae(**changes: Any) -> Any:
    return transformers.VideoMAEForVideoClassification(
        transformers.VideoMAEConfig(**_VIT, image_size=SIDE, num_frames=FRAMES, **_labelled(changes))
    )


def timesformer(**changes: Any) -> Any:
    return transformers.TimesformerForVideoClassification(
        transformers.TimesformerConfig(**_VIT, image_size=SIDE, num_frames=FRAMES, **_labelled(changes))
    )


def vivit(**changes: Any) -> Any:
    return transformers.VivitForVideoClassification(
        transformers.VivitConfig(
            **_VIT, image_size=SIDE, num_frames=FRAMES, tubelet_size=[2, 16, 16], **_labelled(changes)
        )
    )


def vjepa2(**changes: Any) -> Any:
    return transformers.VJEPA2ForVideoClassification(
        transformers.VJEPA2Config(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=1.5, crop_size=SIDE,
            frames_per_clip=FRAMES, tubelet_size=2, patch_size=16, num_pooler_layers=1,
            pred_hidden_size=16, pred_num_attention_heads=2, pred_num_hidden_layers=1, **_labelled(changes),
        )
    )  # fmt: skip


def _labelled(changes: dict[str, Any]) -> dict[str, Any]:
    return {
        "id2label": dict(enumerate(LABELS)),
        "label2id": {label: i for i, label in enumerate(LABELS)},
    } | changes


def settled(model: Any, seed: int = 5) -> Any:
    """The model with reproducible random weights, for which different images get different results."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            gain = parameter.ndim == 1 and name.endswith("weight")
            # Similar queries would all have one class.
            spread = 8.0 if "queries_" in name else 1.0 if "class_predictor" in name else 0.2
            parameter.copy_(1 + 0.1 * noise if gain else spread * noise)
    return model.eval()


def saved(path: Path, model: Any, preprocessor: dict[str, Any] | None = None) -> Path:
    """Write the model, with weights of `settled`, and its preprocessing to a folder."""
    settled(model).save_pretrained(path)
    (path / "preprocessor_config.json").write_text(json.dumps(RANGE | (preprocessor or SQUARE)))
    return path


Make = Callable[..., Any]
"""Makes a model; keyword arguments change its configuration."""


def load_runner(path: Path, **options: Any) -> PretrainedRunner:
    """The runner of a checkpoint in a folder."""
    return huggingface.runner(huggingface.load(str(path)), **options)


def run_plan(runner: PretrainedRunner, text: str, media: list[NDArray[np.uint8]]) -> list[Result]:
    """The results of media under a plan. Every item must have one."""
    plan = runner.card.plan(text)
    runner.check(plan)
    results = runner.run(runner.stack(media, plan), plan)
    assert all(isinstance(result, Result) for result in results)
    return [result for result in results if isinstance(result, Result)]


def random_image(seed: int, side: int = SIDE) -> NDArray[np.uint8]:
    """Noise, (side, side, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
