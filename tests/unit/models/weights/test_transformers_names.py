"""Names and shapes of transformers' parameters, translated to timm's."""

import pytest
import torch
from torch import Tensor

from foveate.models.weights.transformers_names import from_transformers

ONE = torch.ones(1)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("embeddings.patch_embeddings.projection.bias", "patch_embed.proj.bias"),
        ("embeddings.patch_embedding.bias", "patch_embed.proj.bias"),
        ("encoder.layer.11.layernorm_before.weight", "blocks.11.norm1.weight"),
        ("layers.11.layernorm_after.weight", "blocks.11.norm2.weight"),
        ("encoder.layers.1.layer_norm1.bias", "blocks.1.norm1.bias"),
        ("encoder.layer.1.norm2.bias", "blocks.1.norm2.bias"),
        ("encoder.layer.1.attention.output.dense.bias", "blocks.1.attn.proj.bias"),
        ("encoder.layer.1.attention.o_proj.bias", "blocks.1.attn.proj.bias"),
        ("encoder.layers.1.self_attn.out_proj.bias", "blocks.1.attn.proj.bias"),
        ("encoder.layer.1.intermediate.dense.bias", "blocks.1.mlp.fc1.bias"),
        ("encoder.layer.1.output.dense.bias", "blocks.1.mlp.fc2.bias"),
        ("encoder.layer.1.mlp.weights_in.bias", "blocks.1.mlp.fc1.bias"),
        ("encoder.layer.1.mlp.down_proj.bias", "blocks.1.mlp.fc2.bias"),
        ("encoder.layer.1.layer_scale2.lambda1", "blocks.1.ls2.gamma"),
        ("pre_layrnorm.bias", "norm_pre.bias"),
        ("post_layernorm.bias", "norm.bias"),
        ("visual_projection.weight", "head.weight"),
        ("distillation_classifier.bias", "head_dist.bias"),
        ("head.probe", "attn_pool.latent"),
        ("head.attention.out_proj.bias", "attn_pool.proj.bias"),
        ("head.layernorm.bias", "attn_pool.norm.bias"),
        ("head.mlp.fc2.bias", "attn_pool.mlp.fc2.bias"),
        ("something.else", "something.else"),
    ],
)
def test_names(name: str, expected: str) -> None:
    assert [*from_transformers({name: ONE})] == [expected]


def test_parts_are_joined_in_timms_order() -> None:
    parts = {"v": 3.0, "q": 1.0, "k": 2.0}
    state = {f"encoder.layers.0.self_attn.{part}_proj.bias": ONE * value for part, value in parts.items()}
    state |= {"encoder.layer.1.mlp.up_proj.bias": ONE * 5, "encoder.layer.1.mlp.gate_proj.bias": ONE * 4}
    state |= {"head.attention.in_proj_bias": torch.arange(3.0)}
    joined = {name: value.tolist() for name, value in from_transformers(state).items()}
    assert joined == {
        "blocks.0.attn.qkv.bias": [1, 2, 3],
        "blocks.1.mlp.fc1.bias": [4, 5],
        "attn_pool.q.bias": [0],
        "attn_pool.kv.bias": [1, 2],
    }


def test_an_incomplete_projection_stays_out() -> None:
    """Attaching the weights then reports the parameter that is missing."""
    assert not from_transformers({"encoder.layer.0.attention.attention.key.bias": ONE})


def test_tokens_and_positions_get_the_dimension_of_the_batch() -> None:
    state = {
        "embeddings.class_embedding": torch.ones(4),
        "embeddings.position_embedding.weight": torch.ones(5, 4),
    }
    shapes = {name: tuple(value.shape) for name, value in from_transformers(state).items()}
    assert shapes == {"cls_token": (1, 1, 4), "pos_embed": (1, 5, 4)}


def test_position_of_the_class_token_beside_registers() -> None:
    """The sum is not rounded to half precision."""
    state: dict[str, Tensor] = {
        "embeddings.cls_token": torch.full((1, 1, 2), 1.0, dtype=torch.float16),
        "embeddings.position_embeddings": torch.full((1, 5, 2), 2.0**-12, dtype=torch.float16),
        "embeddings.register_tokens": torch.zeros(1, 3, 2),
    }
    renamed = from_transformers(state)
    assert renamed["cls_token"].tolist() == [[[1 + 2.0**-12] * 2]]
    assert renamed["pos_embed"].shape == (1, 4, 2)


def test_distillation_token() -> None:
    """With a classifier of its own it is timm's; without one it is a register."""
    token = {"embeddings.distillation_token": ONE}
    assert "reg_token" in from_transformers(token)
    assert "dist_token" in from_transformers(token | {"distillation_classifier.bias": ONE})
