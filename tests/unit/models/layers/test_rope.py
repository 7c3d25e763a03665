"""Rotary positions: their angles, the rotation of features, and how they move with reduced tokens."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from foveate.core.plan import Plan
from foveate.models import reduction
from foveate.models.heads import ExitSpec
from foveate.models.layers.config import ViTConfig
from foveate.models.layers.rope import Rotation, initial_rotation, patch_angles
from foveate.models.layers.tokens import Assignment, Tokens
from foveate.models.vit.resolve import resolve
from foveate.models.vit.vit import ElasticViT, ResolvedPlan
from foveate.models.weights import timm_models
from tests.support.references import build
from tests.support.timm_modules import create

CONFIG = ViTConfig(image_size=64, width=48, heads=3, depth=6, classes=5, rope="cat")
HALVES = replace(CONFIG, rope="dinov3", rope_half=True, rope_temperature=100.0, pos_embed=False, registers=2)

pytestmark = pytest.mark.usefixtures("inference_on_one_thread")
both = pytest.mark.parametrize("config", [CONFIG, HALVES], ids=["neighbours", "halves"])


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rotation(config: ViTConfig, side: int = 4) -> Rotation:
    return initial_rotation(config, side, torch.device("cpu"), torch.float32)


def tokens_of(config: ViTConfig, batch: int = 2, side: int = 4) -> Tokens:
    x = noise(batch, config.prefix + side * side, config.width)
    return Tokens.start(x, config.prefix, rotation(config, side))


@both
def test_scores_depend_on_the_distance_of_two_patches_alone(config: ViTConfig) -> None:
    turn = rotation(config)
    queries, keys = (
        turn(noise(1, 3, 1, 16).expand(1, 3, 16 + config.prefix, 16)),
        turn(noise(1, 3, 1, 16, seed=2).expand(1, 3, 16 + config.prefix, 16)),
    )
    scores = (queries @ keys.mT)[0, 0, config.prefix :, config.prefix :]
    # One row and one column further: patches 0 and 5, 5 and 10.
    assert torch.allclose(scores[0, 5], scores[5, 10], atol=1e-4)
    assert (scores[0, 5] - scores[0, 6]).abs() > 1e-3
    assert torch.allclose(
        queries.norm(dim=3), queries.norm(dim=3)[:, :, :1].expand(-1, -1, 16 + config.prefix)
    )


@both
def test_prefix_tokens_are_not_rotated(config: ViTConfig) -> None:
    x = noise(2, 3, 16 + config.prefix, 16)
    turned = rotation(config)(x)
    assert torch.equal(turned[:, :, : config.prefix], x[:, :, : config.prefix])
    assert not torch.allclose(turned[:, :, config.prefix + 1], x[:, :, config.prefix + 1])


def test_a_larger_grid_is_scaled_to_the_reference_or_centred() -> None:
    scaled = replace(CONFIG, rope_reference=4)
    assert torch.equal(patch_angles(scaled, 8)[2], patch_angles(scaled, 4)[1])
    assert torch.equal(patch_angles(CONFIG, 8)[2], patch_angles(CONFIG, 4)[2])
    centred = patch_angles(HALVES, 3)
    assert centred[4].abs().max() == 0
    assert torch.allclose(centred[0], -centred[8])
    assert torch.equal(patch_angles(replace(CONFIG, rope_xy=True), 4)[1], patch_angles(CONFIG, 4)[4])


@both
def test_kept_tokens_take_their_position_with_them(config: ViTConfig) -> None:
    tokens, first = tokens_of(config), config.prefix
    prefix = list(range(first))
    kept = torch.tensor([[*prefix, first + 9, first + 2], [*prefix, first + 1, first + 14]])
    reduced = tokens.apply(Assignment(kept))
    assert reduced.rotation is not None
    angles = patch_angles(config, 4)
    assert torch.equal(reduced.rotation.angles[0, first:], angles[[9, 2]])
    assert torch.equal(reduced.rotation.angles[1, first:], angles[[1, 14]])
    x = noise(2, 3, first + 2, 16)
    one = reduced.rows(torch.tensor([1]))
    assert one.rotation is not None
    assert torch.equal(one.rotation(x[1:]), reduced.rotation(x)[1:])


def test_a_token_that_absorbs_others_stays_where_it_is() -> None:
    kept, absorbed = torch.tensor([[0, 1, 6]]), torch.tensor([[2, 11]])
    merged = tokens_of(CONFIG, 1).apply(
        Assignment(kept, absorbed, torch.full((1, 3, 2), 0.5), torch.tensor([[1, 2]]))
    )
    assert merged.rotation is not None
    assert torch.equal(merged.rotation.angles[0, 1:], patch_angles(CONFIG, 4)[[0, 5]])


def test_a_new_token_is_at_the_mean_of_its_parts() -> None:
    kept, absorbed = torch.tensor([[0, 1]]), torch.tensor([[6, 8]])
    fused = tokens_of(CONFIG, 1).apply(Assignment(kept, absorbed, torch.tensor([[[0.1, 0.3]]])))
    assert fused.rotation is not None
    angles = patch_angles(CONFIG, 4)
    assert torch.allclose(fused.rotation.angles[0, 2], 0.25 * angles[5] + 0.75 * angles[7], atol=1e-6)


@pytest.mark.parametrize("name", ["eva02_tiny_patch14_224", "vit_small_patch16_dinov3"])
def test_dropped_patches_leave_the_rotations_of_timm(name: str) -> None:
    """The remaining patches go through timm's own blocks with the positions that they had."""
    module: Any = create(name, img_size=112, depth=3, embed_dim=96, num_heads=3)
    model = timm_models.convert(module, name).model
    tokens = model.embed(noise(2, 3, 112, 112))
    patches = torch.tensor([3, 30, 7, 12])
    kept = torch.cat([torch.arange(tokens.prefix), tokens.prefix + patches])
    reduced = tokens.apply(Assignment(kept.expand(2, -1)))
    expected, rope = tokens.x[:, kept], module.rope.get_embed((8 if "eva" in name else 7,) * 2)[patches]
    for block in module.blocks:
        expected = block(expected, rope=rope)
    identity = reduction.create("none", model)
    for index, block in enumerate(model.blocks):
        reduced = block(reduced, identity, index)
    assert (reduced.x - expected).abs().max() < 1e-4


@both
@pytest.mark.parametrize(
    "plan", ["heads:1", "heads:2/evit:0.5", "depth:4/tome:2", "exit:0.5", "evit:0.6/exit:0.5"]
)
def test_heads_depth_and_exits_work_beside_rotary_positions(config: ViTConfig, plan: str) -> None:
    model = ElasticViT(config, exits=(ExitSpec(2, "local", 3), ExitSpec(4, "global", 2))).eval()
    for parameter in model.parameters():
        parameter.copy_(0.5 * noise(*parameter.shape, seed=parameter.numel()))
    images = noise(6, 3, 64, 64)
    resolved = resolve(model, Plan.parse(plan, Plan("x", 64)))
    together = model(images, resolved)
    alone = [model(image.unsqueeze(0), resolved) for image in images]
    assert torch.allclose(together.logits, torch.cat([out.logits for out in alone]), atol=1e-4)
    assert together.exit_layer.tolist() == [int(out.exit_layer) for out in alone]
    full = model(images, ResolvedPlan(reduction.create("none", model), config.depth)).logits
    if "exit" in plan:
        assert (together.exit_layer < config.depth).any()
    assert not torch.allclose(together.logits, full, atol=1e-3)


@pytest.mark.parametrize("reducer", ["evit:0.5", "tome:2", "mctf:2", "expedit:0.5"])
def test_positions_matter_after_a_reduction(reducer: str) -> None:
    """Rotating all tokens alike instead would change the answer."""
    model = build(replace(CONFIG, classes=5))
    images, resolved = noise(2, 3, 64, 64), ResolvedPlan(reduction.create(reducer, model), CONFIG.depth)
    right = model(images, resolved).logits
    tokens = model.embed(images)
    assert tokens.rotation is not None
    still = replace(tokens, rotation=tokens.rotation.moved(torch.zeros_like(tokens.rotation.angles)))
    assert not torch.allclose(model.encode(still, resolved).logits, right, atol=1e-3)
