"""At full compute the trunk's output is timm's, for every supported family of vision transformers."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from foveate.core.errors import SetupError
from foveate.models.weights import timm_config, timm_models
from foveate.models.weights.checkpoint import Checkpoint, resize
from foveate.models.weights.config_from_weights import config_from_weights
from tests.support.timm_modules import create, images, output
from tests.support.torchvision_ops import import_timm

timm = import_timm()

TOLERANCE = 1e-4

MODELS: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {},
    "vit_small_patch16_224": {},
    "vit_base_patch16_224": {},
    "deit_small_patch16_224": {},
    "deit_tiny_distilled_patch16_224": {},
    "vit_small_patch14_reg4_dinov2": {"img_size": 224},
    "vit_base_patch16_clip_224": {},
    "vit_base_patch32_clip_quickgelu_224": {},
    "vit_small_patch16_384": {"img_size": 256},
    "vit_medium_patch16_gap_240": {},
    "deit3_small_patch16_224": {},
}
VARIATIONS: dict[str, dict[str, Any]] = {
    "average pool and norm after it": {"global_pool": "avg"},
    "average pool of normed tokens": {"global_pool": "avg", "fc_norm": False},
    "no classifier": {"num_classes": 0},
    "no class token, registers": {"class_token": False, "reg_tokens": 4, "global_pool": "avg"},
    "registers with positions": {"reg_tokens": 2},
    "query and key norms": {"qk_norm": True},
    "no qkv bias": {"qkv_bias": False},
    "no final norm": {"final_norm": False},
    "tanh gelu": {"act_layer": "gelu_tanh"},
    "odd MLP": {"mlp_ratio": 3.7362},
    "dynamic image size": {"dynamic_img_size": True},
}
REFUSED: dict[str, str] = {
    "vit_small_patch16_18x2_224": "ParallelThingsBlock",
    "vit_base_patch16_rpn_224": "ResPostBlock",
    "vit_base_r50_s16_224": "HybridEmbed",
    "vit_small_patch16_rope_mixed_224": "RotaryEmbeddingMixed",
    "vit_relpos_small_patch16_224": "VisionTransformerRelPos,",
    "swin_tiny_patch4_window7_224": "SwinTransformer,",
    "convnext_tiny": "ConvNeXt,",
}
REFUSED_ARGUMENTS: dict[str, dict[str, Any]] = {
    "PatchDropout": {"patch_drop_rate": 0.5},
    "'avgmax'": {"global_pool": "avgmax"},
    "square": {"img_size": (224, 192)},
    "square RGB": {"in_chans": 1},
    "proj.bias": {"proj_bias": False},
}


def difference(checkpoint: Checkpoint, module: nn.Module) -> float:
    batch = images(checkpoint.config.image_size)
    expected = module(batch)
    # The comparison is only meaningful if outputs are not near zero and differ between images.
    assert expected.std() > 0.1
    assert (expected[0] - expected[1]).abs().max() > 0.01
    return float((output(checkpoint, batch) - expected).abs().max())


pytestmark = pytest.mark.usefixtures("inference_on_one_thread")


@pytest.mark.parametrize("name", MODELS)
def test_output_is_timms(name: str) -> None:
    module = create(name, **MODELS[name])
    assert difference(timm_models.convert(module, name), module) < TOLERANCE


@pytest.mark.parametrize("variation", VARIATIONS)
def test_output_of_a_variation_is_timms(variation: str) -> None:
    module = create("vit_tiny_patch16_224", depth=3, **VARIATIONS[variation])
    assert difference(timm_models.convert(module, "vit_tiny_patch16_224"), module) < TOLERANCE


def test_dinov2_at_its_own_size_uses_the_fused_kernel() -> None:
    name = "vit_small_patch14_reg4_dinov2"
    module = create(name, depth=3)
    checkpoint = timm_models.convert(module, name)
    assert checkpoint.config.image_size == 518
    assert difference(checkpoint, module) < TOLERANCE


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("vit_small_patch16_384", 224),
        ("vit_small_patch16_384", 256),
        ("vit_small_patch14_reg4_dinov2", 224),
        ("deit_tiny_distilled_patch16_224", 288),
    ],
)
def test_another_image_size_is_timms_resampling(name: str, size: int) -> None:
    native = create(name, depth=3)
    other = timm.create_model(name, img_size=size, depth=3).eval()
    filtered = timm.models.vision_transformer.checkpoint_filter_fn(native.state_dict(), other)
    other.load_state_dict(filtered)
    checkpoint = timm_models.convert(native, name)
    assert difference(resize(checkpoint, size), other) < TOLERANCE
    # A plan may ask for another size of a model that stays as it is.
    assert (output(checkpoint, images(size)) - other(images(size))).abs().max() < TOLERANCE


@pytest.mark.parametrize("name", REFUSED)
def test_unsupported_models_are_refused(name: str) -> None:
    with torch.device("meta"):
        module = timm.create_model(name)
    with pytest.raises(SetupError, match=REFUSED[name]):
        timm_config.vit_config(module, name)


@pytest.mark.parametrize("why", REFUSED_ARGUMENTS)
def test_unsupported_arguments_are_refused(why: str) -> None:
    module = timm.create_model("vit_tiny_patch16_224", depth=2, **REFUSED_ARGUMENTS[why])
    with pytest.raises(SetupError, match=why):
        timm_models.convert(module, "vit_tiny_patch16_224")


def test_norms_with_different_epsilons_are_refused() -> None:
    module = timm.create_model("vit_tiny_patch16_224", depth=2)
    module.norm.eps = 1e-5
    with pytest.raises(SetupError, match="epsilons"):
        timm_models.convert(module, "vit_tiny_patch16_224")


def test_a_difference_only_in_the_output_is_refused() -> None:
    module = create("vit_tiny_patch16_224", depth=2)
    module.get_submodule("blocks.1.attn").register_forward_hook(lambda _module, _inputs, output: output * 1.1)
    with pytest.raises(SetupError, match="differs from timm's"):
        timm_models.convert(module, "vit_tiny_patch16_224")


@pytest.mark.parametrize("name", [n for n in MODELS if "quickgelu" not in n])
def test_the_config_from_weights_is_the_one_from_timm(name: str) -> None:
    with torch.device("meta"):
        module = timm.create_model(name, **MODELS[name])
    stated = timm_config.vit_config(module, name)
    assert config_from_weights(module.state_dict(), name) == replace(
        stated, mlp_ratio=float(stated.mlp_ratio)
    )
