"""ToMe in the trunk against a reference written from the paper, one image, head and pair at a time."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from foveate.core.errors import BadPlan
from foveate.models import reduction
from foveate.models.geometry import Geometry, gmacs
from foveate.models.reduction import Attention, Bare, Needs
from foveate.models.tokens import Tokens
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
    """One token of one image and the positions in the input that it stands for."""

    x: Tensor
    members: frozenset[int]


def features(tokens: list[Token]) -> Tensor:
    return torch.stack([token.x for token in tokens])


def reference_attention(block: Block, x: Tensor, sizes: list[int]) -> tuple[Tensor, Tensor]:
    """Tokens (N, D) to proportional attention's output (N, D) and the heads' mean keys (N, d)."""
    attn = block.attn
    width = x.shape[1] // attn.heads
    q, k, v = F.linear(x, attn.qkv.weight, attn.qkv.bias).chunk(3, dim=1)
    outputs, keys = [], []
    for h in range(attn.heads):
        part = slice(h * width, (h + 1) * width)
        qh, kh = attn.q_norm(q[:, part]), attn.k_norm(k[:, part])
        # Equation 1: a token that stands for s others is attended to s times.
        scores = torch.exp(qh @ kh.T / math.sqrt(width)) * torch.tensor(sizes)
        outputs.append(scores / scores.sum(dim=1, keepdim=True) @ v[:, part])
        keys.append(kh)
    return attn.proj(torch.cat(outputs, dim=1)), torch.stack(keys).mean(0)


def reference_merge(tokens: list[Token], keys: Tensor, prefix: int, r: int) -> list[Token]:
    """Section 3.2 and appendix D: what is left, in the paper's order."""
    a = [i for i in range(len(tokens)) if i % 2 == 0 and i >= prefix]
    b = [i for i in range(len(tokens)) if i % 2 == 1 and i >= prefix]
    edges = []
    for i in a:
        likeness = [float(keys[i] @ keys[j] / (keys[i].norm() * keys[j].norm())) for j in b]
        if b:
            edges.append((max(likeness), i, b[likeness.index(max(likeness))]))
    strongest = sorted(edges, reverse=True)[: min(r, (len(tokens) - prefix) // 2)]
    goes = {i: j for _, i, j in strongest}
    left = [tokens[i] for i in a if i not in goes]
    for j in b:
        group = [tokens[j], *(tokens[i] for i in goes if goes[i] == j)]
        total = torch.stack([len(t.members) * t.x for t in group]).sum(0)
        members = frozenset().union(*(t.members for t in group))
        left.append(Token(total / len(members), members))
    return tokens[:prefix] + left


def reference_block(block: Block, tokens: list[Token], prefix: int, r: int) -> list[Token]:
    x = features(tokens)
    update, keys = reference_attention(block, block.norm1(x), [len(t.members) for t in tokens])
    x = x + block.ls1(update)
    tokens = [Token(row, t.members) for row, t in zip(x, tokens, strict=True)]
    tokens = reference_merge(tokens, keys, prefix, r)
    x = features(tokens)
    x = x + block.ls2(block.mlp(block.norm2(x)))
    return [Token(row, t.members) for row, t in zip(x, tokens, strict=True)]


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
    reducer, tokens = reduction.create(f"tome:{r}", model), model.embed(images)
    expected = [[Token(x, frozenset({i})) for i, x in enumerate(row)] for row in tokens.x]
    for index, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        tokens = block(tokens, reducer, index)
        expected = [reference_block(block, row, geometry.prefix, r) for row in expected]
        for row in range(len(images)):
            assert_same(tokens, row, expected[row])
    logits = torch.stack([reference_logits(model, row) for row in expected])
    assert (run(model, images, f"tome:{r}").logits - logits).abs().max() < 1e-4
    # Worth comparing only where reduction changes the answer.
    assert (run(model, images, "none").logits - logits).abs().max() > 1e-2


def test_merging_nothing_needs_nothing() -> None:
    reducer = reduction.create("tome:0", Bare(PLAIN))
    assert [reducer.needs(block) for block in range(6)] == [None] * 6
    assert reducer.after(37, 1, 6) == (37,) * 6


def test_at_most_half_of_the_patches_merge_in_a_block() -> None:
    reducer = reduction.create("tome:100", Bare(PLAIN))
    assert reducer.after(37, 1, 6) == (19, 10, 6, 4, 3, 2)
    assert reducer.after(38, 2, 3) == (20, 11, 7)
    assert reducer.needs(0) is Needs.KEYS
    few = reduction.create("tome:16", Bare(Geometry()))
    assert few.after(197, 1, 12) == (181, 165, 149, 133, 117, 101, 85, 69, 53, 37, 21, 11)


def test_the_most_alike_merge_by_size_and_ties_go_to_the_first() -> None:
    # Positions 2 and 6 are just like 5, and 4 is half like 1; the class token is like 5 as well.
    keys = torch.zeros(1, 1, 7, 4)
    for position, axes in enumerate([[0], [1], [0], [2], [1, 3], [0], [0]]):
        keys[0, 0, position, axes] = 1.0
    x = torch.arange(7.0).view(1, 7, 1)
    tokens = replace(Tokens.start(x, prefix=1), counts=torch.tensor([[1.0, 1, 2, 1, 1, 3, 5]]))
    one = reduction.create("tome:1", Bare(PLAIN))(tokens, Attention(keys=keys), 0)
    assert one.kept.tolist() == [[0, 4, 6, 1, 3, 5]]
    assert one.absorbed is not None
    assert one.absorbed.tolist() == [[2]]
    two = tokens.apply(reduction.create("tome:2", Bare(PLAIN))(tokens, Attention(keys=keys), 0))
    assert two.counts.tolist() == [[1, 1, 1, 1, 10]]
    assert two.x[0, :, 0].tolist() == pytest.approx([0, 4, 1, 3, (2 * 2 + 3 * 5 + 5 * 6) / 10])


def test_keys_are_compared_in_float32() -> None:
    generator = torch.Generator().manual_seed(5)
    tokens = Tokens.start(torch.randn(4, 197, 8, generator=generator), prefix=1)
    keys = (1 + 0.1 * torch.randn(4, 3, 197, 16, generator=generator)).bfloat16()
    reducer = reduction.create("tome:40", Bare(PLAIN))
    found = reducer(tokens, Attention(keys=keys), 0)
    assert torch.equal(found.kept, reducer(tokens, Attention(keys=keys.float()), 0).kept)


@pytest.mark.parametrize(
    ("width", "r", "published"), [(384, 8, 3.4), (384, 13, 2.7), (384, 16, 2.3), (192, 8, 0.92)]
)
def test_published_costs_of_deit(width: int, r: int, published: float) -> None:
    g = Geometry(width=width, heads=width // 64)
    assert cost(g, r) == pytest.approx(published, rel=0.03)


@pytest.mark.parametrize(
    ("r", "depth", "width", "patch", "published"), [(8, 24, 1024, 16, 31.0), (7, 32, 1280, 14, 92.9)]
)
def test_published_costs_of_larger_models(
    r: int, depth: int, width: int, patch: int, published: float
) -> None:
    g = Geometry(width=width, depth=depth, heads=16, patch_size=patch)
    assert cost(g, r) == pytest.approx(published, rel=0.01)


def cost(g: Geometry, r: int) -> float:
    reducer, start = reduction.create(f"tome:{r}", Bare(g)), g.patches(g.image_size) + g.prefix
    return gmacs(g, g.image_size, reducer.after(start, g.prefix, g.depth), reducer.place)


def test_a_count_of_the_real_operations() -> None:
    g = Geometry(width=384, heads=6)
    with FlopCounterMode(display=False) as counter:
        run(ElasticViT(g).eval(), torch.zeros(1, 3, 224, 224), "tome:13")
    # The counter counts a multiplication and its addition as two, and the matching as well.
    assert cost(g, 13) == pytest.approx(counter.get_total_flops() / 2e9, rel=0.03)


@pytest.mark.parametrize("argument", ["", ":", ":-1", ":0.5", ":1e1", ":three", ":\u0663", ":12345", ":8:8"])
def test_only_a_whole_number_can_merge(argument: str) -> None:
    with pytest.raises(BadPlan, match="tome takes how many"):
        reduction.create(f"tome{argument}", Bare(PLAIN))


def test_without_keys_there_is_nothing_to_compare() -> None:
    tokens = Tokens.start(torch.zeros(1, 5, 4), prefix=1)
    with pytest.raises(ValueError, match="keys"):
        reduction.create("tome:1", Bare(PLAIN))(tokens, Attention(), 0)
