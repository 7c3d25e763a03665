"""Exit heads against the order of operations of their paper, with and without reduction, and calibrated."""

from dataclasses import replace
from typing import cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from foveate.models import exits, reduction
from foveate.models.heads import ExitSpec
from foveate.models.heads.exits import ExitHead, GlobalHead, LocalHead, build
from foveate.models.layers.config import ViTConfig, block_macs
from foveate.models.layers.tokens import Assignment, Tokens
from foveate.models.profiling.calibration import exit_logits
from foveate.models.vit.vit import ElasticViT, ResolvedPlan, TrunkOutput

CONFIG = ViTConfig(image_size=96, width=24, depth=6, heads=3, classes=7)
SPECS = (ExitSpec(2, "local", 3), ExitSpec(3, "local", 5), ExitSpec(5, "global", 2))
KINDS = (ExitSpec(1, "local", 1), ExitSpec(1, "local", 3), ExitSpec(1, "global", 1), ExitSpec(1, "global", 2))
CONFIGS = {
    "class token": CONFIG,
    "two prefix": replace(CONFIG, distilled=True),
    "registers": replace(CONFIG, registers=3, embed_prefix=False),
    "averaged": replace(CONFIG, pool="avg"),
    "patches alone": replace(CONFIG, class_token=False, pool="avg"),
}

every_kind = pytest.mark.parametrize("spec", KINDS, ids=str)
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
pytestmark = pytest.mark.usefixtures("inference_on_one_thread")


def randomise(module: torch.nn.Module, seed: int = 7) -> None:
    """Set weights so far from zero that every part of the module changes its output."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        gain = parameter.ndim == 1 and name.endswith("weight")
        parameter.copy_(1 + 0.1 * noise if gain else 0.2 * noise)


def head_of(config: ViTConfig, spec: ExitSpec) -> ExitHead:
    head = build(config, spec).eval()
    randomise(head)
    return head


def tokens_of(config: ViTConfig, side: int, batch: int = 3, seed: int = 3) -> Tokens:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, config.prefix + side**2, config.width, generator=generator)
    return Tokens.start(x, config.prefix)


def model_with_heads(config: ViTConfig = CONFIG, specs: tuple[ExitSpec, ...] = SPECS) -> ElasticViT:
    model = ElasticViT(config, specs).eval()
    randomise(model)
    return model


def random_images(batch: int, side: int = 96) -> Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(3))


def run(
    model: ElasticViT, images: Tensor, rule: str | None, reducer: str = "none", depth: int = 6
) -> TrunkOutput:
    resolved = ResolvedPlan(reduction.create(reducer, model), depth, exits.create(rule) if rule else None)
    out: TrunkOutput = model(images, resolved)
    return out


def pointwise(layer: torch.nn.Linear, grid: Tensor) -> Tensor:
    return F.conv2d(grid, layer.weight[:, :, None, None], layer.bias)


def local_map(head: LocalHead, x: Tensor, present: Tensor) -> Tensor:
    """The local head's feature map in the paper's order of operations: patches (B, P, D) to (B, P, D)."""
    side = int(x.shape[1] ** 0.5)
    grid = head.norm(x).transpose(1, 2).reshape(len(x), -1, side, side)
    hidden = F.gelu(pointwise(head.expand, grid)) * present.view(-1, 1, side, side)
    kernel = head.depthwise.weight
    mixed = F.conv2d(hidden, kernel, head.depthwise.bias, padding=kernel.shape[-1] // 2, groups=len(kernel))
    return pointwise(head.project, F.gelu(mixed)).flatten(2).transpose(1, 2) + x


def global_map(head: GlobalHead, x: Tensor, present: Tensor) -> Tensor:
    """The global head's feature map of one image: the present ones of its patches (P, D) to (M, D)."""
    side, width = int(len(x) ** 0.5), x.shape[1]
    grid, filled = head.norm(x).view(side, side, width), present.view(side, side)
    starts = range(0, side, head.window)
    squares = [(slice(r, r + head.window), slice(c, c + head.window)) for r in starts for c in starts]
    cells = torch.stack([grid[square][filled[square]].mean(0) for square in squares if filled[square].any()])
    parts = [head.queries_keys(cells)[:, : head.narrow], head.queries_keys(cells)[:, head.narrow :]]
    q, k, v = (y.reshape(len(cells), head.heads, -1).transpose(0, 1) for y in (*parts, head.values(cells)))
    out: Tensor = head.project(F.scaled_dot_product_attention(q, k, v).transpose(0, 1).flatten(1))
    return out


def reference_logits(head: ExitHead, x: Tensor, class_token: Tensor | None, present: Tensor) -> Tensor:
    """Logits (B, C) of the patches (B, P, D) that are present (B, P)."""
    rows = range(len(x))
    if isinstance(head, LocalHead):
        pooled = [local_map(head, x, present)[row][present[row]].mean(0) for row in rows]
    else:
        pooled = [global_map(cast("GlobalHead", head), x[row], present[row]).mean(0) for row in rows]
    features = torch.stack(pooled) + (0 if class_token is None else class_token)
    logits: Tensor = head.head(head.final_norm(features))
    return logits


def class_token_of(head: ExitHead, tokens: Tokens) -> Tensor | None:
    return tokens.x[:, 0] if head.with_class_token else None


@every_config
@every_kind
@pytest.mark.parametrize("side", [6, 5, 1])
def test_logits_are_the_papers(spec: ExitSpec, config: ViTConfig, side: int) -> None:
    head, tokens = head_of(config, spec), tokens_of(config, side)
    patches, present = tokens.x[:, config.prefix :], torch.ones(3, side**2, dtype=torch.bool)
    expected = reference_logits(head, patches, class_token_of(head, tokens), present)
    assert torch.allclose(head(tokens), expected, atol=1e-5)
    assert (expected[0] - expected[1]).abs().max() > 1e-2


@every_kind
def test_dropped_patches_are_zeros_in_the_grid_and_token_order_does_not_matter(
    spec: ExitSpec,
) -> None:
    head, tokens = head_of(CONFIG, spec), tokens_of(CONFIG, 6)
    generator = torch.Generator().manual_seed(1)
    kept = torch.stack([torch.randperm(36, generator=generator)[:11] + 1 for _ in range(3)])
    reduced = tokens.apply(Assignment(torch.cat([torch.zeros(3, 1, dtype=torch.int64), kept], dim=1)))
    present = torch.zeros(3, 37, dtype=torch.bool).scatter(1, kept, torch.tensor(True).expand(3, 11))[:, 1:]
    expected = reference_logits(head, tokens.x[:, 1:], tokens.x[:, 0], present)
    assert torch.allclose(head(reduced), expected, atol=1e-5)
    assert (expected - head(tokens)).abs().max() > 1e-2


@every_kind
def test_a_token_that_represents_several_patches_is_at_each_of_their_positions(spec: ExitSpec) -> None:
    head, tokens = head_of(CONFIG, spec), tokens_of(CONFIG, 6)
    kept, absorbed = torch.arange(30).expand(3, -1), torch.arange(30, 37).expand(3, -1)
    fused = tokens.apply(Assignment(kept, absorbed, torch.full((3, 1, 7), 1 / 7)))
    spread = torch.cat([tokens.x[:, :30], tokens.x[:, 30:].mean(1, keepdim=True).expand(-1, 7, -1)], dim=1)
    assert len(fused) == 31
    assert torch.allclose(head(fused), head(tokens.with_features(spread)), atol=1e-5)


@every_config
@every_kind
def test_an_image_without_remaining_patches_gets_finite_logits(spec: ExitSpec, config: ViTConfig) -> None:
    tokens = tokens_of(config, 4)
    dropped = replace(tokens, source=torch.full_like(tokens.source, -1))
    assert head_of(config, spec)(dropped).isfinite().all()


@every_kind
def test_a_row_gives_the_same_alone_and_in_a_batch(spec: ExitSpec) -> None:
    head, tokens = head_of(CONFIG, spec), tokens_of(CONFIG, 6, batch=5)
    alone = torch.cat([head(tokens.rows(torch.tensor([row]))) for row in range(5)])
    assert (head(tokens) - alone).abs().max() < 1e-5


@every_kind
def test_half_precision_gives_nearly_the_same_logits(spec: ExitSpec) -> None:
    head, tokens = head_of(CONFIG, spec), tokens_of(CONFIG, 6)
    expected = head(tokens)
    logits = head.bfloat16()(tokens.with_features(tokens.x.bfloat16()))
    assert logits.dtype == torch.bfloat16
    assert (logits.float() - expected).abs().max() < 0.1 * expected.abs().max()


@pytest.mark.parametrize("side", [14, 10, 7])
@every_kind
def test_the_cost_is_that_of_the_operations_and_far_below_that_of_a_block(spec: ExitSpec, side: int) -> None:
    config = ViTConfig(classes=104)
    head, tokens = head_of(config, spec), tokens_of(config, side, batch=1)
    with FlopCounterMode(display=False) as counter:
        head(tokens)
    # The means over patches are matrix products too, but too small to be part of the cost.
    assert counter.get_total_flops() / 2 == pytest.approx(head.macs(side, len(tokens)), rel=0.06)
    count = len(tokens)
    if spec != ExitSpec(1, "global", 1):  # without averaging, its attention costs as much as a block's
        assert head.macs(side, count) < 0.1 * block_macs(config, count, (count,))


def test_temperature_divides_the_logits_and_is_stored() -> None:
    head, tokens = head_of(CONFIG, SPECS[0]), tokens_of(CONFIG, 6)
    before = head(tokens)
    head.temperature.fill_(2.5)
    assert torch.allclose(head(tokens), before / 2.5)
    assert head.state_dict()["temperature"] == 2.5


@pytest.mark.parametrize("reducer", ["none", "evit:0.5", "evit:0.1"])
@pytest.mark.parametrize("side", [96, 80, 48, 16])
def test_real_heads_serve_any_size_and_reduction_and_rows_are_independent(side: int, reducer: str) -> None:
    model = model_with_heads()
    images = random_images(6, side)
    for rule in ("0.5", "entropy:0.5", "patience:1"):
        out = run(model, images, rule, reducer)
        assert out.logits.isfinite().all()
        for row, image in enumerate(images):
            alone = run(model, image.unsqueeze(0), rule, reducer)
            assert alone.exit_layer[0] == out.exit_layer[row]
            assert (alone.logits[0] - out.logits[row]).abs().max() < 1e-4


@every_config
def test_exit_logits_are_those_of_depth_caps(config: ViTConfig) -> None:
    model, images = model_with_heads(config), random_images(3)
    for reducer in ("none", "evit:0.5") if config.class_token else ("none",):
        by_depth = exit_logits(model, images, reduction.create(reducer, model))
        assert list(by_depth) == [2, 3, 5, 6]
        for depth, logits in by_depth.items():
            assert torch.equal(logits, run(model, images, None, reducer, depth).logits)
