"""MCTF in the trunk against a reference written from the paper, one image, head, pair and step at a time."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from foveate.core.errors import BadPlan
from foveate.models import reduction
from foveate.models.layers.blocks import Block
from foveate.models.layers.config import ReductionPoint, ViTConfig
from foveate.models.layers.reducer import Attention, Needs, UntrainedContext
from foveate.models.layers.tokens import Assignment, Tokens
from foveate.models.vit.vit import ElasticViT
from tests.support.references import (
    MERGED,
    PLAIN,
    Token,
    assert_same_logits,
    assert_same_walk,
    attended,
    attention,
    build,
    classify,
    cost,
    counted_cost,
    pictures,
    walk,
)

pytestmark = pytest.mark.usefixtures("inference_on_one_thread")


@dataclass(frozen=True)
class Fused(Token):
    """What a token is made of in this block."""

    parts: tuple[int, ...] = ()
    """Positions among the tokens that enter this block."""
    weight: float = 1.0


def unfused(i: int, token: Token, weight: float = 1.0) -> Fused:
    return Fused(token.x, token.size, token.members, (i,), weight)


def attraction(tokens: list[Token], received: list[float]) -> list[list[float]]:
    """Section 3.2: the product of three criteria under their temperatures, for every pair."""
    information = [min(received) / a for a in received]
    fewest = min(len(t.members) for t in tokens)
    small = [fewest / len(t.members) for t in tokens]

    def of(i: int, j: int) -> float:
        a, b = tokens[i].x, tokens[j].x
        similarity = (float(a @ b / (a.norm() * b.norm())) + 1) / 2
        other = math.pow(information[i] * information[j], 1 / 20) * math.pow(small[i] * small[j], 1 / 40)
        return similarity * other

    return [[of(i, j) for j in range(len(tokens))] for i in range(len(tokens))]


def fuse(one: Fused, other: Fused) -> Fused:
    weight = one.weight + other.weight
    x = (one.weight * one.x + other.weight * other.x) / weight
    members, parts = one.members | other.members, one.parts + other.parts
    return Fused(x, len(members), members, parts, weight)


def matches(pull: list[list[float]], sources: list[int], targets: list[int]) -> list[tuple[int, int]]:
    """Each source with its best target, the strongest first."""
    best = {i: max(targets, key=lambda j: pull[i][j]) for i in sources}
    return sorted(best.items(), key=lambda edge: -pull[edge[0]][edge[1]])


def reference_fusion(tokens: list[Token], weights: Tensor, prefix: int, r: int) -> list[Fused]:
    """Bidirectional bipartite soft matching, one step after the other."""
    r = min(r, len(tokens) - 10, (len(tokens) - prefix) // 2)
    if r <= 0:
        return [unfused(i, t) for i, t in enumerate(tokens)]
    received: list[float] = weights.mean(dim=(0, 1)).tolist()
    pull = attraction(tokens, received)
    now = {i: unfused(i, t, received[i] * len(t.members)) for i, t in enumerate(tokens)}
    evens = [i for i in now if i >= prefix and i % 2 == 0]
    odds = [i for i in now if i >= prefix and i % 2 == 1]
    for i, j in matches(pull, evens, odds)[: r // 2]:
        now[j] = fuse(now[j], now.pop(i))
        evens.remove(i)
    edges = matches(pull, odds, evens)
    for j, i in edges[: r - r // 2]:
        now[i] = fuse(now[i], now.pop(j))
    return [now[i] for i in [*range(prefix), *evens, *(j for j, _ in edges if j in now)]]


def reference_ahead(weights: Tensor, fused: list[Fused], before: list[Token]) -> Tensor:
    """Section 3.3: queries are mixed as the features were, keys add up."""
    received = weights.mean(dim=(0, 1))
    queries = []
    for token in fused:
        shares = torch.tensor([float(received[i]) * len(before[i].members) for i in token.parts])
        rows = torch.stack([weights[:, i] for i in token.parts])
        queries.append((shares[:, None, None] * rows).sum(0) / shares.sum())
    mixed = torch.stack(queries, dim=1)
    return torch.stack([mixed[:, :, list(token.parts)].sum(2) for token in fused], dim=2)


def reference(model: ElasticViT, image: Tensor, r: int) -> list[list[Token]]:
    def first_half(block: Block, tokens: list[Token], index: int) -> list[Token]:
        weights = attention(block, tokens).weights
        fused = reference_fusion(tokens, weights, model.config.prefix, r if index else 0)
        ahead = reference_ahead(weights, fused, tokens)
        return attended(block, fused, replace(attention(block, fused), weights=ahead))

    return walk(model, image, first_half)


@pytest.mark.parametrize("r", [1, 3, 8, 100])
@pytest.mark.parametrize("config", MERGED.values(), ids=MERGED)
def test_every_block_gives_what_the_paper_says(config: ViTConfig, r: int) -> None:
    model, images = build(config), pictures(config)
    expected = [reference(model, image, r) for image in images]
    assert_same_walk(model, images, f"mctf:{r}", expected)
    assert_same_logits(model, images, f"mctf:{r}", [classify(model, walked[-1]) for walked in expected])


def test_the_first_block_never_fuses() -> None:
    for depth in (6, 12):
        reducer = reduction.create("mctf:16", UntrainedContext(ViTConfig(depth=depth)))
        assert reducer.point is ReductionPoint.AHEAD
        assert [reducer.needs(block) for block in range(depth)] == [None] + [Needs.FULL] * (depth - 1)
        nothing = reduction.create("mctf:0", UntrainedContext(ViTConfig(depth=depth)))
        assert [nothing.needs(block) for block in range(depth)] == [None] * depth


def test_half_of_the_patches_fuse_at_most_and_ten_tokens_stay() -> None:
    sixteen = reduction.create("mctf:16", UntrainedContext(ViTConfig()))
    assert sixteen.after(197, 1, 12) == (197, 181, 165, 149, 133, 117, 101, 85, 69, 53, 37, 21)
    assert sixteen.after(37, 1, 6) == (37, 21, 11, 10, 10, 10)
    assert sixteen.after(9, 1, 3) == (9, 9, 9)
    assert reduction.create("mctf:100", UntrainedContext(ViTConfig())).after(40, 5, 4) == (40, 23, 14, 10)


def decide(r: int, x: Tensor, weights: Tensor) -> Assignment:
    reducer = reduction.create(f"mctf:{r}", UntrainedContext(PLAIN))
    return reducer(Tokens.start(x, prefix=1), Attention(full=weights), 1)


def test_what_was_absorbed_moves_on_with_who_absorbed_it() -> None:
    # Of 13 tokens, 2 is most like 3 and 3 most like 4: 2 goes into 3, and both into 4.
    x = 4 * torch.eye(13).unsqueeze(0)
    x[0, 2, 3] = x[0, 3, 2] = 3.0
    x[0, 4, 3] = x[0, 3, 4] = 2.5
    weights = torch.zeros(1, 1, 13, 13)
    weights[..., :] = torch.arange(1.0, 14) / 91
    decided = decide(2, x, weights)
    assert decided.absorbed is not None
    assert decided.into is not None
    assert decided.own is not None
    assert decided.share is not None
    assert decided.absorbed.tolist() == [[2, 3]]
    assert decided.kept[0, :6].tolist() == [0, 4, 6, 8, 10, 12]
    assert decided.into.tolist() == [[1, 1]]
    # By the attention they receive, which is 3, 4 and 5 parts.
    assert decided.share[0, 1].tolist() == pytest.approx([3 / 12, 4 / 12])
    assert float(decided.own[0, 1]) == pytest.approx(5 / 12)
    assert decided.share[0, [0, *range(2, 11)]].count_nonzero() == 0


def test_the_informative_and_the_large_are_spared() -> None:
    tokens = Tokens.start(torch.ones(1, 13, 4), prefix=1)
    even, watched, counts = torch.ones(13), torch.ones(13), torch.ones(1, 13)
    watched[2], counts[0, [2, 4]] = 2, 2

    def first(tokens: Tokens, received: Tensor) -> int:
        weights = (received / received.sum()).expand(1, 1, 13, 13)
        decided = reduction.create("mctf:2", UntrainedContext(PLAIN))(tokens, Attention(full=weights), 1)
        assert decided.absorbed is not None
        return int(decided.absorbed[0, 0])

    assert first(tokens, even) == 2
    assert first(tokens, watched) == 4
    assert first(replace(tokens, counts=counts), even) == 6


def test_a_token_that_nobody_attends_to_breaks_nothing() -> None:
    x = torch.randn(1, 13, 4, generator=torch.Generator().manual_seed(2))
    weights = torch.zeros(1, 2, 13, 13)
    weights[..., 0] = 1
    decided = decide(3, x, weights)
    fused = decided.mix(x)
    assert fused.isfinite().all()
    assert decided.own is not None
    assert decided.share is not None
    assert torch.allclose(decided.own + decided.share.sum(2), torch.ones(1, 10))


@pytest.mark.parametrize(("width", "published"), [(384, 2.60), (192, 0.71)])
def test_published_costs_of_deit(width: int, published: float) -> None:
    config = ViTConfig(width=width, heads=width // 64)
    assert cost(config, "mctf:16") == pytest.approx(published, rel=0.03)
    assert 1 - cost(config, "mctf:16") / cost(config, "mctf:0") == pytest.approx(0.44, abs=0.01)


def test_a_count_of_the_real_operations() -> None:
    config = ViTConfig(width=384, heads=6)
    # Matching and fusing are counted as well.
    assert cost(config, "mctf:16") == pytest.approx(counted_cost(config, "mctf:16"), rel=0.03)


@pytest.mark.parametrize("argument", ["", ":", ":-1", ":0.35", ":1e1", ":three", ":\u0663", ":12345", ":8:8"])
def test_only_a_whole_number_can_fuse(argument: str) -> None:
    with pytest.raises(BadPlan, match="mctf takes how many"):
        reduction.create(f"mctf{argument}", UntrainedContext(PLAIN))


def test_without_attention_there_is_nothing_to_go_by() -> None:
    tokens = Tokens.start(torch.zeros(1, 13, 4), prefix=1)
    with pytest.raises(ValueError, match="attention"):
        reduction.create("mctf:1", UntrainedContext(PLAIN))(tokens, Attention(), 1)
