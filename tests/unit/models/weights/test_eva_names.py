"""timm's Eva class, SwiGLU and attention pooling: the converted trunk gives timm's outputs at every size."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from foveate.core.checkpoint_options import CheckpointOptions
from foveate.core.errors import SetupError
from foveate.core.plan import Plan
from foveate.models.layers.config import ViTConfig
from foveate.models.vit.resolve import resolve
from foveate.models.weights import checkpoint, hub, timm_models
from foveate.models.weights.checkpoint import Checkpoint, resize
from foveate.models.weights.eva_names import is_eva, trunk_names
from foveate.models.weights.timm_config import vit_config
from tests.support.timm_modules import create, images, output
from tests.support.torchvision_ops import import_timm

timm = import_timm()
TOLERANCE = 1e-4
SMALL: dict[str, Any] = {"depth": 2, "embed_dim": 96, "num_heads": 3, "num_classes": 7}
KINDS: dict[str, dict[str, Any]] = {
    # SwiGLU, rotary positions and learned ones, joined queries, keys and values with biases of their own.
    "eva02_tiny_patch14_224": {"img_size": 112},
    # Separate queries, keys and values; a norm in the MLP.
    "eva02_base_patch14_448": {"img_size": 112},
    # The same with a norm in the attention, and the class token.
    "eva02_large_patch14_clip_224": {"img_size": 112},
    "eva_giant_patch14_224": {"img_size": 112},
    # Rotary positions alone, centred, in halves; registers and layer scale.
    "vit_small_patch16_dinov3": {"img_size": 96},
    "vit_small_patch16_dinov3_qkvb": {"img_size": 96, "global_pool": "token"},
    "vit_huge_plus_patch16_dinov3": {"img_size": 96},
    "vit_medium_patch16_rope_reg1_gap_256": {"img_size": 96},
    "vit_small_patch16_rope_224": {"img_size": 96},
    "vit_small_patch16_rope_ape_224": {"img_size": 96},
    # Attention pooling over class token and patches, with heads of its own.
    "vit_pe_core_tiny_patch16_384": {"img_size": 96},
    "vit_pe_spatial_tiny_patch16_512": {"img_size": 96},
    "vit_base_patch16_siglip_224": {"img_size": 96},
    "vit_so400m_patch14_siglip_224": {"img_size": 112},
    "vit_giant_patch14_dinov2": {"img_size": 112},
}
VARIATIONS: dict[str, dict[str, Any]] = {
    "class token beside attention pooling": {"global_pool": "map"},
    "all tokens in attention pooling": {"global_pool": "map", "pool_include_prefix": True},
    "norm after attention pooling": {"global_pool": "map", "class_token": False, "fc_norm": True},
    "norms within a block": {"scale_attn_norm": True, "scale_mlp_norm": True},
    "no position embeddings": {"pos_embed": "none"},
}

pytestmark = pytest.mark.usefixtures("inference_on_one_thread")


def assert_same(converted: Checkpoint, module: nn.Module, side: int) -> None:
    batch = images(side)
    expected = module(batch)
    # The comparison is only meaningful if outputs are not near zero and differ between images.
    assert expected.std() > 0.1
    assert (expected[0] - expected[1]).abs().max() > 0.01
    assert (output(converted, batch) - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize("name", KINDS)
def test_output_of_each_kind_is_timms(name: str) -> None:
    module = create(name, **SMALL, **KINDS[name])
    assert_same(timm_models.convert(module, name), module, KINDS[name]["img_size"])


@pytest.mark.parametrize("factor", [4 / 7, 9 / 7])
@pytest.mark.parametrize("name", KINDS)
def test_output_at_another_size_is_timms(name: str, factor: float) -> None:
    module: Any = create(name, **SMALL, **KINDS[name])
    patch = module.patch_embed.patch_size[0]
    side = round(KINDS[name]["img_size"] * factor / patch) * patch
    converted = timm_models.convert(module, name)
    # A model for fixed sizes interpolates its positions when its size is set, as others do for every image.
    module.set_input_size(img_size=(side, side))
    assert_same(converted, module, side)
    assert_same(resize(converted, side), module, side)


@pytest.mark.parametrize("variation", VARIATIONS)
def test_output_of_a_variation_is_timms(variation: str) -> None:
    module = create("vit_tiny_patch16_224", img_size=96, **SMALL, **VARIATIONS[variation])
    assert_same(timm_models.convert(module, "vit_tiny_patch16_224"), module, 96)


@pytest.mark.parametrize(
    ("name", "arguments", "why"),
    [
        ("vit_small_patch16_rope_mixed_224", {}, "RotaryEmbeddingMixed"),
        ("eva02_enormous_patch14_clip_224", {"embed_dim": 96, "num_heads": 3}, "EvaBlockPostNorm"),
        ("vit_small_patch16_dinov3", {"attn_only_layer_scale": True}, "ls2.gamma"),
        ("vit_small_patch16_dinov3", {"global_pool": "max"}, "'max'"),
        ("vit_small_patch16_dinov3", {"swiglu_mlp": True, "global_pool": "map"}, "attention pooling"),
        ("eva02_base_patch14_224", {"attn_type": "rope", "num_kv_heads": 4}, "qkv"),
    ],
)
def test_what_the_trunk_lacks_is_refused(name: str, arguments: dict[str, Any], why: str) -> None:
    with torch.device("meta"):
        module = timm.create_model(name, depth=2, **arguments)
    with pytest.raises(SetupError, match=why):
        timm_models._trunk(module, name)


def test_card_of_an_eva_model_needs_no_weights() -> None:
    card = timm_models.card("vit_small_patch16_dinov3")
    assert (card.config.rope, card.config.registers, card.config.pos_embed) == ("dinov3", 4, False)
    assert card.config.classes == 0


@pytest.mark.parametrize("name", ["eva02_tiny_patch14_224", "vit_pe_core_tiny_patch16_384"])
def test_random_weights_of_an_eva_model_answer(name: str) -> None:
    loaded = hub.load(f"random:{name}", image_size=112)
    batch, model = images(112), loaded.model
    for text in ("none", "evit:0.5", "tome:4"):
        resolved = resolve(model, Plan(loaded.name, 112, reducer=text))
        logits = model(batch, resolved).logits
        assert logits.isfinite().all()
        assert len(logits[0]) == (loaded.config.projection or loaded.config.classes or loaded.config.width)


def test_a_converted_model_is_saved_with_its_card(tmp_path: Path) -> None:
    name = "vit_pe_core_tiny_patch16_384"
    module = create(name, img_size=96, **SMALL)
    checkpoint.save(tmp_path / "a.safetensors", timm_models.convert(module, name))
    assert_same(hub.load(str(tmp_path / "a.safetensors")), module, 96)


def test_a_file_of_an_eva_model_needs_its_architecture(tmp_path: Path) -> None:
    name = "eva02_tiny_patch14_224"
    module = create(name, num_classes=7, depth=2, img_size=112)
    path = tmp_path / "a.safetensors"
    save_file(module.state_dict(), path)
    with pytest.raises(SetupError, match="may have rotary positions, which weights do not show"):
        hub.load(str(path))
    loaded = hub.load(str(path), options=CheckpointOptions(architecture=name))
    assert_same(loaded, module, 112)
    assert "guessed: mean" in loaded.description  # and nothing about the network
    other = hub.load(
        str(path), options=CheckpointOptions(architecture="eva02_tiny_patch14_336", image_size=56)
    )
    assert other.config.image_size == 56
    # Another preparation of the same weights has another profile.
    plain = hub.load(str(path), options=CheckpointOptions(architecture="vit_tiny_patch16_224"))
    assert plain.preparation != loaded.preparation


def test_names_of_other_models_stay() -> None:
    state = {"blocks.0.attn.qkv.weight": torch.ones(3, 1), "head.weight": torch.ones(1)}
    assert not is_eva(state)
    assert trunk_names(state) == state


def test_parts_are_joined_in_the_order_of_the_trunk() -> None:
    def row(value: float) -> Tensor:
        return torch.full((1,), value)

    state = {
        "blocks.3.attn.v_bias": row(3), "blocks.3.attn.q_bias": row(1), "blocks.3.mlp.fc1_x.bias": row(5),
        "blocks.3.mlp.fc1_g.bias": row(4), "blocks.3.gamma_2": row(6),
    }  # fmt: skip
    assert is_eva(state)
    names = trunk_names(state)
    assert names["blocks.3.attn.qkv.bias"].tolist() == [1, 0, 3]
    assert names["blocks.3.mlp.fc1.bias"].tolist() == [4, 5]
    assert names["blocks.3.ls2.gamma"].tolist() == [6]
    assert len(names) == 3


@pytest.mark.parametrize("missing", ["blocks.3.attn.q_proj.weight", "blocks.3.attn.v_proj.weight"])
def test_parts_whose_others_are_missing_keep_their_names(missing: str) -> None:
    state = {f"blocks.3.attn.{part}_proj.weight": torch.ones(1, 1) for part in "qkv"}
    del state[missing]
    assert trunk_names(state) == state
    both = {"blocks.3.mlp.fc1_g.bias": torch.ones(1), "blocks.3.mlp.fc1.bias": torch.ones(2)}
    assert trunk_names(both) == both


def test_the_config_of_an_eva_model() -> None:
    with torch.device("meta"):
        module = timm.create_model("eva02_tiny_patch14_224", num_classes=3)
    assert vit_config(module, "a") == ViTConfig(
        patch_size=14, mlp_ratio=512 / 192, classes=3, pool="avg", fc_norm=True, final_norm=False,
        gated_mlp=True, activation="silu", rope="cat", rope_reference=16,
    )  # fmt: skip
