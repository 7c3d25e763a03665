"""MCTF in the trunk against a reference written from the paper, one image, head, pair and step at a time."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from foveate.core.errors import BadPlan
from foveate.models import reduction
from foveate.models.geometry import Geometry, Place, gmacs
from foveate.models.reduction import Attention, Bare, Needs
from foveate.models.tokens import Assignment, Tokens
from foveate.models.vit import Block, ElasticViT, Steps, TrunkOutput

GEOMETRIES = {
    "odd count": Geometry(image_size=96, width=48, depth=6, heads=3, classes=10),
    "even count": Geometry(image_size=80, width=48, depth=6, heads=3, classes=10),
    "two prefix": Geometry(
        image_size=96, width=48, depth=6, heads=3, classes=10, distilled=True, layer_scale=True
    ),
    "registers": Geometry(
        image_size=80, width=48, depth=6, heads=3, classes=10, registers=3, embed_prefix=False, qk_norm=True
    ),
    "no prefix": Geometry(
        image_size=80, width=48, depth=6, heads=3, classes=10, class_token=False, pool="avg", fc_norm=True
    ),
}
PLAIN = GEOMETRIES["odd count"]
every_geometry = pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES.keys())

pytestmark = pytest.mark.usefixtures("inference_on_one_thread")


def build(g: Geometry) -> ElasticViT:
    model, generator = ElasticViT(g).eval(), torch.Generator().manual_seed(7)
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        gain = p.ndim == 1 and not name.endswith("bias")
        # Queries and keys large enough that attention tells the tokens apart.
        scale = 0.3 if name.endswith("qkv.weight") else 0.15
        p.copy_(1 + 0.1 * noise if gain else scale * noise)
    return model


def pictures(g: Geometry, batch: int = 3) -> Tensor:
    return torch.randn(batch, 3, g.image_size, g.image_size, generator=torch.Generator().manual_seed(3))


def run(model: ElasticViT, images: Tensor, spec: str) -> TrunkOutput:
    g = model.geometry
    out: TrunkOutput = model(images, Steps(reduction.create(spec, model), g.depth))
    return out


@dataclass(frozen=True)
class Token:
    """One token of one image, the positions in the input that it stands for, and what it weighs here."""

    x: Tensor
    members: frozenset[int]
    parts: tuple[int, ...] = ()
    """Positions, among the tokens that enter this block, of what it is made of."""
    weight: float = 1.0


def features(tokens: list[Token]) -> Tensor:
    return torch.stack([token.x for token in tokens])


def reference_attention(block: Block, x: Tensor, sizes: list[int]) -> Tensor:
    """Proportional attention weights (H, N, N) of tokens (N, D)."""
    attn = block.attn
    width = x.shape[1] // attn.heads
    q, k, _ = F.linear(x, attn.qkv.weight, attn.qkv.bias).chunk(3, dim=1)
    weights = []
    for h in range(attn.heads):
        part = slice(h * width, (h + 1) * width)
        scores = torch.exp(attn.q_norm(q[:, part]) @ attn.k_norm(k[:, part]).T / math.sqrt(width))
        scores = scores * torch.tensor(sizes)
        weights.append(scores / scores.sum(dim=1, keepdim=True))
    return torch.stack(weights)


def reference_update(block: Block, x: Tensor, weights: Tensor) -> Tensor:
    values = F.linear(x, block.attn.qkv.weight, block.attn.qkv.bias).chunk(3, dim=1)[2]
    heads = values.chunk(block.attn.heads, dim=1)
    out: Tensor = block.attn.proj(torch.cat([w @ v for w, v in zip(weights, heads, strict=True)], dim=1))
    return out


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


def fuse(one: Token, other: Token) -> Token:
    weight = one.weight + other.weight
    x = (one.weight * one.x + other.weight * other.x) / weight
    return Token(x, one.members | other.members, one.parts + other.parts, weight)


def matches(pull: list[list[float]], sources: list[int], targets: list[int]) -> list[tuple[int, int]]:
    """Each source with its best target, the strongest first."""
    best = {i: max(targets, key=lambda j: pull[i][j]) for i in sources}
    return sorted(best.items(), key=lambda edge: -pull[edge[0]][edge[1]])


def reference_fusion(tokens: list[Token], attention: Tensor, prefix: int, r: int) -> list[Token]:
    """Bidirectional bipartite soft matching, one step after the other."""
    r = min(r, len(tokens) - 10, (len(tokens) - prefix) // 2)
    if r <= 0:
        return [replace(t, parts=(i,)) for i, t in enumerate(tokens)]
    received: list[float] = attention.mean(dim=(0, 1)).tolist()
    pull = attraction(tokens, received)
    now = {i: replace(t, parts=(i,), weight=received[i] * len(t.members)) for i, t in enumerate(tokens)}
    evens = [i for i in now if i >= prefix and i % 2 == 0]
    odds = [i for i in now if i >= prefix and i % 2 == 1]
    for i, j in matches(pull, evens, odds)[: r // 2]:
        now[j] = fuse(now[j], now.pop(i))
        evens.remove(i)
    edges = matches(pull, odds, evens)
    for j, i in edges[: r - r // 2]:
        now[i] = fuse(now[i], now.pop(j))
    return [now[i] for i in [*range(prefix), *evens, *(j for j, _ in edges if j in now)]]


def reference_ahead(attention: Tensor, fused: list[Token], before: list[Token]) -> Tensor:
    """Section 3.3: queries are mixed as the features were, keys add up."""
    received = attention.mean(dim=(0, 1))
    queries = []
    for token in fused:
        weights = torch.tensor([float(received[i]) * len(before[i].members) for i in token.parts])
        rows = torch.stack([attention[:, i] for i in token.parts])
        queries.append((weights[:, None, None] * rows).sum(0) / weights.sum())
    mixed = torch.stack(queries, dim=1)
    return torch.stack([mixed[:, :, list(token.parts)].sum(2) for token in fused], dim=2)


def reference_block(block: Block, tokens: list[Token], prefix: int, r: int) -> list[Token]:
    sizes = [len(t.members) for t in tokens]
    attention = reference_attention(block, block.norm1(features(tokens)), sizes)
    fused = reference_fusion(tokens, attention, prefix, r)
    x = features(fused)
    x = x + block.ls1(reference_update(block, block.norm1(x), reference_ahead(attention, fused, tokens)))
    x = x + block.ls2(block.mlp(block.norm2(x)))
    return [Token(row, t.members) for row, t in zip(x, fused, strict=True)]


def reference_logits(model: ElasticViT, tokens: list[Token]) -> Tensor:
    g, x = model.geometry, model.norm(features(tokens))
    if g.pool == "avg":
        each = [len(t.members) * row for row, t in zip(x, tokens, strict=True)]
        pooled = torch.stack(each).sum(0) / sum(len(t.members) for t in tokens)
    else:
        pooled = x[0]
    logits: Tensor = model.head(model.fc_norm(pooled))
    return (logits + model.head_dist(x[1])) / 2 if g.distilled else logits


def assert_same(tokens: Tokens, row: int, expected: list[Token]) -> None:
    """Features, counts and source map of one image, token by token in the same order."""
    assert (tokens.x[row] - features(expected)).abs().max() < 1e-4
    assert tokens.counts[row].tolist() == [len(t.members) for t in expected]
    for patch, slot in enumerate(tokens.source[row].tolist()):
        assert tokens.prefix + patch in expected[slot].members


@pytest.mark.parametrize("r", [1, 3, 8, 100])
@every_geometry
def test_every_block_gives_what_the_paper_says(geometry: Geometry, r: int) -> None:
    model, images = build(geometry), pictures(geometry)
    reducer, tokens = reduction.create(f"mctf:{r}", model), model.embed(images)
    expected = [[Token(x, frozenset({i})) for i, x in enumerate(row)] for row in tokens.x]
    for index, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        tokens = block(tokens, reducer, index)
        expected = [reference_block(block, row, geometry.prefix, r if index else 0) for row in expected]
        for row in range(len(images)):
            assert_same(tokens, row, expected[row])
    logits = torch.stack([reference_logits(model, row) for row in expected])
    assert (run(model, images, f"mctf:{r}").logits - logits).abs().max() < 1e-4
    # Worth comparing only where reduction changes the answer.
    assert (run(model, images, "none").logits - logits).abs().max() > 1e-2


def test_the_first_block_never_fuses() -> None:
    for depth in (6, 12):
        reducer = reduction.create("mctf:16", Bare(Geometry(depth=depth)))
        assert reducer.place is Place.AHEAD
        assert [reducer.needs(block) for block in range(depth)] == [None] + [Needs.FULL] * (depth - 1)
        nothing = reduction.create("mctf:0", Bare(Geometry(depth=depth)))
        assert [nothing.needs(block) for block in range(depth)] == [None] * depth


def test_half_of_the_patches_fuse_at_most_and_ten_tokens_stay() -> None:
    sixteen = reduction.create("mctf:16", Bare(Geometry()))
    assert sixteen.after(197, 1, 12) == (197, 181, 165, 149, 133, 117, 101, 85, 69, 53, 37, 21)
    assert sixteen.after(37, 1, 6) == (37, 21, 11, 10, 10, 10)
    assert sixteen.after(9, 1, 3) == (9, 9, 9)
    assert reduction.create("mctf:100", Bare(Geometry())).after(40, 5, 4) == (40, 23, 14, 10)


def decide(r: int, x: Tensor, weights: Tensor) -> Assignment:
    reducer = reduction.create(f"mctf:{r}", Bare(PLAIN))
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
        decided = reduction.create("mctf:2", Bare(PLAIN))(tokens, Attention(full=weights), 1)
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


def cost(g: Geometry, r: int) -> float:
    reducer, start = reduction.create(f"mctf:{r}", Bare(g)), g.patches(g.image_size) + g.prefix
    return gmacs(g, g.image_size, reducer.after(start, g.prefix, g.depth), reducer.place)


@pytest.mark.parametrize(("width", "published"), [(384, 2.60), (192, 0.71)])
def test_published_costs_of_deit(width: int, published: float) -> None:
    g = Geometry(width=width, heads=width // 64)
    assert cost(g, 16) == pytest.approx(published, rel=0.03)
    assert 1 - cost(g, 16) / cost(g, 0) == pytest.approx(0.44, abs=0.01)


def test_a_count_of_the_real_operations() -> None:
    g = Geometry(width=384, heads=6)
    with FlopCounterMode(display=False) as counter:
        run(ElasticViT(g).eval(), torch.zeros(1, 3, 224, 224), "mctf:16")
    # The counter counts a multiplication and its addition as two, and matching and fusing as well.
    assert cost(g, 16) == pytest.approx(counter.get_total_flops() / 2e9, rel=0.03)


@pytest.mark.parametrize("argument", ["", ":", ":-1", ":0.35", ":1e1", ":three", ":\u0663", ":12345", ":8:8"])
def test_only_a_whole_number_can_fuse(argument: str) -> None:
    with pytest.raises(BadPlan, match="mctf takes how many"):
        reduction.create(f"mctf{argument}", Bare(PLAIN))


def test_without_attention_there_is_nothing_to_go_by() -> None:
    tokens = Tokens.start(torch.zeros(1, 13, 4), prefix=1)
    with pytest.raises(ValueError, match="attention"):
        reduction.create("mctf:1", Bare(PLAIN))(tokens, Attention(), 1)
