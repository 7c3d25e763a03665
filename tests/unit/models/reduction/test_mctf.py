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
    add_attention,
    assert_same_logits,
    assert_same_tokens_per_block,
    block_attention,
    build,
    classify,
    cost,
    counted_cost,
    random_images,
    tokens_per_block,
)

pytestmark = pytest.mark.usefixtures("inference_on_one_thread")


@dataclass(frozen=True)
class Fused(Token):
    """A token, and the tokens of this block from which it was fused."""

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


def fuse(first: Fused, second: Fused) -> Fused:
    weight = first.weight + second.weight
    x = (first.weight * first.x + second.weight * second.x) / weight
    members, parts = first.members | second.members, first.parts + second.parts
    return Fused(x, len(members), members, parts, weight)


def matches(attractions: list[list[float]], sources: list[int], targets: list[int]) -> list[tuple[int, int]]:
    """Each source with its best target, the strongest first."""
    best = {i: max(targets, key=lambda j: attractions[i][j]) for i in sources}
    return sorted(best.items(), key=lambda edge: -attractions[edge[0]][edge[1]])


def reference_fusion(tokens: list[Token], weights: Tensor, prefix: int, r: int) -> list[Fused]:
    """Bidirectional bipartite soft matching, one step after the other."""
    r = min(r, len(tokens) - 10, (len(tokens) - prefix) // 2)
    if r <= 0:
        return [unfused(i, t) for i, t in enumerate(tokens)]
    received: list[float] = weights.mean(dim=(0, 1)).tolist()
    attractions = attraction(tokens, received)
    now = {i: unfused(i, t, received[i] * len(t.members)) for i, t in enumerate(tokens)}
    evens = [i for i in now if i >= prefix and i % 2 == 0]
    odds = [i for i in now if i >= prefix and i % 2 == 1]
    for i, j in matches(attractions, evens, odds)[: r // 2]:
        now[j] = fuse(now[j], now.pop(i))
        evens.remove(i)
    edges = matches(attractions, odds, evens)
    for j, i in edges[: r - r // 2]:
        now[i] = fuse(now[i], now.pop(j))
    return [now[i] for i in [*range(prefix), *evens, *(j for j, _ in edges if j in now)]]


def reference_ahead(weights: Tensor, fused: list[Fused], before: list[Token]) -> Tensor:
    """Section 3.3: attention rows are mixed as the features were, and columns are summed."""
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
        weights = block_attention(block, tokens).weights
        fused = reference_fusion(tokens, weights, model.config.prefix, r if index else 0)
        ahead = reference_ahead(weights, fused, tokens)
        return add_attention(block, fused, replace(block_attention(block, fused), weights=ahead))

    return tokens_per_block(model, image, first_half)


@pytest.mark.parametrize("r", [1, 3, 8, 100])
@pytest.mark.parametrize("config", MERGED.values(), ids=MERGED)
def test_tokens_after_every_block_are_the_papers(config: ViTConfig, r: int) -> None:
    model, images = build(config), random_images(config)
    expected = [reference(model, image, r) for image in images]
    assert_same_tokens_per_block(model, images, f"mctf:{r}", expected)
    assert_same_logits(model, images, f"mctf:{r}", [classify(model, per_block[-1]) for per_block in expected])


def test_the_first_block_never_fuses() -> None:
    for depth in (6, 12):
        reducer = reduction.create("mctf:16", UntrainedContext(ViTConfig(depth=depth)))
        assert reducer.point is ReductionPoint.AHEAD
        assert [reducer.needs(block) for block in range(depth)] == [None] + [Needs.FULL] * (depth - 1)
        identity = reduction.create("mctf:0", UntrainedContext(ViTConfig(depth=depth)))
        assert [identity.needs(block) for block in range(depth)] == [None] * depth


def test_at_most_half_of_the_patches_fuse_and_ten_tokens_stay() -> None:
    sixteen = reduction.create("mctf:16", UntrainedContext(ViTConfig()))
    assert sixteen.after(197, 1, 12) == (197, 181, 165, 149, 133, 117, 101, 85, 69, 53, 37, 21)
    assert sixteen.after(37, 1, 6) == (37, 21, 11, 10, 10, 10)
    assert sixteen.after(9, 1, 3) == (9, 9, 9)
    assert reduction.create("mctf:100", UntrainedContext(ViTConfig())).after(40, 5, 4) == (40, 23, 14, 10)


def decide(r: int, x: Tensor, weights: Tensor) -> Assignment:
    reducer = reduction.create(f"mctf:{r}", UntrainedContext(PLAIN))
    return reducer(Tokens.start(x, prefix=1), Attention(full=weights), 1)


def test_absorbed_tokens_move_on_with_the_token_that_absorbed_them() -> None:
    # Of 13 tokens, 2 is most similar to 3, and 3 to 4: 2 goes into 3, and both go into 4.
    x = 4 * torch.eye(13).unsqueeze(0)
    x[0, 2, 3] = x[0, 3, 2] = 3.0
    x[0, 4, 3] = x[0, 3, 4] = 2.5
    weights = torch.zeros(1, 1, 13, 13)
    weights[..., :] = torch.arange(1.0, 14) / 91
    assignment = decide(2, x, weights)
    assert assignment.absorbed is not None
    assert assignment.into is not None
    assert assignment.own is not None
    assert assignment.share is not None
    assert assignment.absorbed.tolist() == [[2, 3]]
    assert assignment.kept[0, :6].tolist() == [0, 4, 6, 8, 10, 12]
    assert assignment.into.tolist() == [[1, 1]]
    # The weights are the attention they receive: 3, 4 and 5 parts.
    assert assignment.share[0, 1].tolist() == pytest.approx([3 / 12, 4 / 12])
    assert float(assignment.own[0, 1]) == pytest.approx(5 / 12)
    assert assignment.share[0, [0, *range(2, 11)]].count_nonzero() == 0


def test_informative_and_large_tokens_are_fused_last() -> None:
    tokens = Tokens.start(torch.ones(1, 13, 4), prefix=1)
    even, uneven, counts = torch.ones(13), torch.ones(13), torch.ones(1, 13)
    uneven[2], counts[0, [2, 4]] = 2, 2

    def first(tokens: Tokens, received: Tensor) -> int:
        weights = (received / received.sum()).expand(1, 1, 13, 13)
        assignment = reduction.create("mctf:2", UntrainedContext(PLAIN))(tokens, Attention(full=weights), 1)
        assert assignment.absorbed is not None
        return int(assignment.absorbed[0, 0])

    assert first(tokens, even) == 2
    assert first(tokens, uneven) == 4
    assert first(replace(tokens, counts=counts), even) == 6


def test_a_token_that_receives_no_attention_gives_finite_results() -> None:
    x = torch.randn(1, 13, 4, generator=torch.Generator().manual_seed(2))
    weights = torch.zeros(1, 2, 13, 13)
    weights[..., 0] = 1
    assignment = decide(3, x, weights)
    fused = assignment.mix(x)
    assert fused.isfinite().all()
    assert assignment.own is not None
    assert assignment.share is not None
    assert torch.allclose(assignment.own + assignment.share.sum(2), torch.ones(1, 10))


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
def test_an_argument_that_is_no_whole_number_is_refused(argument: str) -> None:
    with pytest.raises(BadPlan, match="mctf takes how many"):
        reduction.create(f"mctf{argument}", UntrainedContext(PLAIN))


def test_missing_attention_raises() -> None:
    tokens = Tokens.start(torch.zeros(1, 13, 4), prefix=1)
    with pytest.raises(ValueError, match="attention"):
        reduction.create("mctf:1", UntrainedContext(PLAIN))(tokens, Attention(), 1)
