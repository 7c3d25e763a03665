"""The modules of a block, and the points at which a reducer acts in it."""

from dataclasses import dataclass, replace
from typing import TypeVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.models.layers import blocks
from foveate.models.layers.blocks import Block, QuickGELU, SelfAttention, top_heads
from foveate.models.layers.config import ReductionPoint, ViTConfig
from foveate.models.layers.matching import merge
from foveate.models.layers.reducer import Attention, Needs, Reducer
from foveate.models.layers.tokens import Assignment, Tokens

CONFIG = ViTConfig(width=24, heads=3, layer_scale=True, qk_norm=True)

M = TypeVar("M", bound=nn.Module)

pytestmark = pytest.mark.usefixtures("inference_on_one_thread")


def randomised(module: M) -> M:
    generator = torch.Generator().manual_seed(7)
    for parameter in module.parameters():
        parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    return module


def features(tokens: int = 7) -> Tensor:
    return torch.randn(2, tokens, CONFIG.width, generator=torch.Generator().manual_seed(3))


@dataclass
class KeepFirst(Reducer):
    """Keeps the first four tokens, at any point of a block, and records the attention it gets."""

    point: ReductionPoint = ReductionPoint.MIDDLE
    attention: Attention | None = None

    def needs(self, block: int) -> Needs | None:
        return Needs.NOTHING if block == 1 else None

    def __call__(self, tokens: Tokens, attention: Attention, block: int) -> Assignment:
        self.attention = attention
        return Assignment(torch.arange(4).expand(2, -1))


def test_quick_gelu_approximates_gelu() -> None:
    x = torch.linspace(-4, 4, 81)
    assert torch.allclose(QuickGELU()(x), F.gelu(x), atol=0.03)
    assert torch.allclose(QuickGELU()(x), x / (1 + torch.exp(-1.702 * x)), atol=1e-6)


def test_each_token_uses_the_heads_in_which_its_query_is_longest() -> None:
    q = torch.randn(2, 4, 5, 3, generator=torch.Generator().manual_seed(1))
    mask = top_heads(q, 2)
    assert mask.shape == (2, 4, 5, 1)
    for row in range(2):
        for token in range(5):
            norms = [float(q[row, head, token].norm()) for head in range(4)]
            best = sorted(range(4), key=lambda head: -norms[head])[:2]
            assert mask[row, :, token, 0].nonzero().squeeze(1).tolist() == sorted(best)


@pytest.mark.parametrize("proportional", [False, True])
def test_both_kernels_give_the_same_update_and_class_row(
    proportional: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    attention, x = randomised(SelfAttention(CONFIG)), features()
    log_counts = torch.arange(1.0, 8.0).expand(2, -1).log() if proportional else None
    explicit, from_explicit = attention(x, Needs.CLASS_ROW, log_counts)
    monkeypatch.setattr(blocks, "EXPLICIT_LENGTH", 0)
    fused, from_fused = attention(x, Needs.CLASS_ROW, log_counts)
    assert torch.allclose(explicit, fused, atol=1e-5)
    assert torch.allclose(from_explicit.class_row, from_fused.class_row, atol=1e-5)
    assert torch.allclose(from_explicit.class_row.sum(1), torch.ones(2), atol=1e-5)


def test_attention_returns_no_more_information_than_needed() -> None:
    attention, x = randomised(SelfAttention(CONFIG)), features()
    for needs in (None, Needs.NOTHING, Needs.KEYS, Needs.FULL | Needs.VALUES):
        _, information = attention(x, needs, None)
        returned = {
            Needs.CLASS_ROW: information.class_row,
            Needs.FULL: information.full,
            Needs.KEYS: information.keys,
            Needs.VALUES: information.values,
        }
        for need, value in returned.items():
            assert (value is not None) == (needs is not None and need in needs)
    assert torch.allclose(attention.weights(x, None), information.full, atol=1e-6)


def test_the_update_of_fused_tokens_is_that_of_fused_weights() -> None:
    attention, x = randomised(SelfAttention(CONFIG)), features(4)
    weights = attention.weights(x, None)
    # The last token merges into the third.
    fusion = merge(torch.tensor([[0, 1, 2]] * 2), torch.tensor([[3]] * 2), torch.tensor([[2]] * 2),
                   torch.ones(2, 4))  # fmt: skip
    fused = fusion.mix(x)
    update = attention.fused_update(fused, weights, fusion)
    rows = torch.stack([weights[:, :, 0], weights[:, :, 1], weights[:, :, 2:].mean(2)], 2)
    columns = torch.cat([rows[..., :2], rows[..., 2:].sum(-1, keepdim=True)], -1)
    values = F.linear(fused, attention.qkv.weight[48:], attention.qkv.bias[48:])
    values = values.view(2, 3, 3, 8).transpose(1, 2)
    expected = attention.proj(torch.matmul(columns, values).transpose(1, 2).flatten(2))
    assert torch.allclose(update, expected, atol=1e-5)


@pytest.mark.parametrize("point", ReductionPoint)
def test_a_reducer_acts_at_its_point(point: ReductionPoint) -> None:
    block, reducer = randomised(Block(replace(CONFIG, qk_norm=False))), KeepFirst(point)
    tokens = Tokens.start(features(), 1)
    untouched, reduced = block(tokens, reducer, 0), block(tokens, reducer, 1)
    assert len(untouched) == 7 and len(reduced) == 4
    assert reducer.attention is not None
    assert (reducer.attention.full is not None) == (point is ReductionPoint.AHEAD)
    # Only in the middle do the dropped tokens still take part in this block's attention.
    same = torch.allclose(reduced.x, untouched.x[:, :4], atol=1e-5)
    assert same == (point is ReductionPoint.MIDDLE)
    alone = block(Tokens.start(features()[:, :4], 1), reducer, 0)
    assert torch.allclose(reduced.x, alone.x, atol=1e-5) == (point is ReductionPoint.BEFORE)
