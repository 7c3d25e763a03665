"""GTP in the trunk against a reference written from the paper, one image, head and token at a time."""

import math
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.core.errors import BadPlan
from foveate.models import reduction
from foveate.models.geometry import Geometry, gmacs
from foveate.models.reduction import Attention, Bare, Needs
from foveate.models.reduction.gtp import usefulness
from foveate.models.tokens import Assignment, Tokens
from foveate.models.vit import Block, ElasticViT, Steps, TrunkOutput

GEOMETRIES = {
    "plain": Geometry(image_size=96, width=48, depth=6, heads=3, classes=10),
    "two prefix": Geometry(
        image_size=80, width=48, depth=6, heads=3, classes=10, distilled=True, layer_scale=True
    ),
    "registers": Geometry(
        image_size=96, width=48, depth=6, heads=3, classes=10, registers=3, embed_prefix=False
    ),
    "no prefix": Geometry(
        image_size=80, width=48, depth=6, heads=3, classes=10, class_token=False, pool="avg"
    ),
}
PLAIN = GEOMETRIES["plain"]
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


@dataclass
class Token:
    """One token; a prefix token has no place."""

    x: Tensor
    scale: float
    place: tuple[int, int] | None


def touching(place: tuple[int, int], side: int) -> set[tuple[int, int]]:
    row, column = place
    around = {(row + r, column + c) for r in (-1, 0, 1) for c in (-1, 0, 1)} - {place}
    return {(r, c) for r, c in around if 0 <= r < side and 0 <= c < side}


def reference_attention(block: Block, tokens: list[Token]) -> list[Tensor]:
    """Proportional attention: adds the update to every token, and gives each head's weights (N, N)."""
    attn, maps, outputs = block.attn, [], []
    x = block.norm1(torch.stack([token.x for token in tokens]))
    scales = torch.tensor([token.scale for token in tokens])
    q, k, v = F.linear(x, attn.qkv.weight, attn.qkv.bias).chunk(3, dim=1)
    width = x.shape[1] // attn.heads
    for h in range(attn.heads):
        part = slice(h * width, (h + 1) * width)
        raised = torch.exp(q[:, part] @ k[:, part].T / math.sqrt(width)) * scales
        maps.append(raised / raised.sum(dim=1, keepdim=True))
        outputs.append(maps[-1] @ v[:, part])
    update = block.ls1(attn.proj(torch.cat(outputs, dim=1)))
    for token, change in zip(tokens, update, strict=True):
        token.x = token.x + change
    return maps


def reference_propagation(tokens: list[Token], maps: list[Tensor], leaving: int, side: int) -> list[Token]:
    worth = {}
    for i, token in enumerate(tokens):
        if token.place is not None:
            difficulty = max(float(weights[i, i]) for weights in maps)
            worth[i] = difficulty * max(float(weights[:, i].sum()) for weights in maps)
    gone = sorted(worth, key=lambda i: worth[i])[: min(leaving, len(worth) - 1)]
    kept = [i for i in range(len(tokens)) if i not in gone]
    after = []
    for i in kept:
        x, scale, place = tokens[i].x, tokens[i].scale, tokens[i].place
        for j in gone:
            other = tokens[j].place
            if place is not None and other is not None and other in touching(place, side):
                degrees = len(touching(place, side)) * len(touching(other, side))
                x = x + 0.1 / math.sqrt(degrees) * tokens[j].x
                scale = scale + 0.1 / math.sqrt(degrees) * tokens[j].scale
        after.append(Token(x, scale, place))
    return after


def reference(model: ElasticViT, image: Tensor, leaving: int) -> tuple[Tensor, list[Token]]:
    """Logits of one image (3, S, S), and the tokens after the last block."""
    g = model.geometry
    side = g.image_size // g.patch_size
    embedded = model.embed(image.unsqueeze(0)).x[0]
    places = [None] * g.prefix + [(r, c) for r in range(side) for c in range(side)]
    tokens = [Token(x, 1.0, place) for x, place in zip(embedded, places, strict=True)]
    for block in model.blocks:
        assert isinstance(block, Block)
        maps = reference_attention(block, tokens)
        tokens = reference_propagation(tokens, maps, leaving, side)
        for token in tokens:
            token.x = token.x + block.ls2(block.mlp(block.norm2(token.x)))
    x = model.norm(torch.stack([token.x for token in tokens]))
    if g.pool == "avg":
        weight = torch.tensor([token.scale for token in tokens])
        return model.head((x * weight.unsqueeze(1)).sum(0) / weight.sum()), tokens
    logits: Tensor = model.head(x[0])
    return ((logits + model.head_dist(x[1])) / 2 if g.distilled else logits), tokens


@every_geometry
@pytest.mark.parametrize("leaving", [1, 3, 5])
def test_logits_are_the_papers(geometry: Geometry, leaving: int) -> None:
    model, images = build(geometry), pictures(geometry)
    expected = torch.stack([reference(model, image, leaving)[0] for image in images])
    assert (run(model, images, f"gtp:{leaving}").logits - expected).abs().max() < 1e-4
    # Worth comparing only where reduction changes the answer.
    assert (run(model, images, "none").logits - expected).abs().max() > 1e-2


@every_geometry
def test_every_token_knows_its_own_patch_and_its_scale(geometry: Geometry) -> None:
    model, image = build(geometry), pictures(geometry, 1)
    side, reducer = geometry.image_size // geometry.patch_size, reduction.create("gtp:3", model)
    tokens: Tokens = model.embed(image)
    for index, block in enumerate(model.blocks):
        tokens = block(tokens, reducer, index)
    found = {
        (origin // side, origin % side): scale
        for origin, scale in zip(
            (tokens.origin[0, geometry.prefix :] - geometry.prefix).tolist(),
            tokens.counts[0, geometry.prefix :].tolist(),
            strict=True,
        )
    }
    expected = {token.place: token.scale for token in reference(model, image[0], 3)[1] if token.place}
    assert found.keys() == expected.keys()
    assert all(found[place] == pytest.approx(scale, rel=1e-5) for place, scale in expected.items())
    assert any(scale > 1 for scale in expected.values())


@pytest.mark.parametrize("geometry", [PLAIN, GEOMETRIES["two prefix"]])
def test_nobody_leaving_is_the_identity_to_the_bit(geometry: Geometry) -> None:
    model, images = build(geometry), pictures(geometry, 2)
    assert torch.equal(run(model, images, "gtp:0").logits, run(model, images, "none").logits)


def decide(leaving: int, worth: Tensor, tokens: Tokens) -> Assignment:
    """The decision where token i attends itself with worth[i], and nothing else."""
    full = torch.diag_embed(worth).expand(len(tokens.x), 2, -1, -1)
    return reduction.create(f"gtp:{leaving}", Bare(PLAIN))(tokens, Attention(full=full), 0)


def test_a_leaving_tokens_place_goes_to_the_nearest_that_stays() -> None:
    # On a 3 x 3 grid all but the first corner and the last leave.
    worth = torch.full((9,), 0.1)
    worth[[0, 8]] = 1.0
    tokens = Tokens.start(torch.arange(9.0).view(1, 9, 1), prefix=0)
    after = tokens.apply(decide(7, worth, tokens))
    assert after.origin.tolist() == [[0, 8]]
    assert after.source.tolist() == [[0, 0, 0, 0, 0, 1, 0, 1, 1]]
    # A corner touches two edges, of degree 5, and the centre, of degree 8; the other corners touch
    # neither and are lost.
    edge, centre = 0.1 / math.sqrt(15), 0.1 / math.sqrt(24)
    first, last = after.x[0, :, 0].tolist()
    assert first == pytest.approx(0 + edge * (1 + 3) + centre * 4)
    assert last == pytest.approx(8 + edge * (5 + 7) + centre * 4)
    assert after.counts[0].tolist() == pytest.approx([1 + 2 * edge + centre] * 2)


def test_neighbours_are_those_of_the_picture_however_often_tokens_have_moved() -> None:
    # First the tokens turn round; then the middle of what was the first row leaves.
    tokens = Tokens.start(torch.arange(9.0).view(1, 9, 1), prefix=0)
    turned = tokens.apply(Assignment(torch.arange(8, -1, -1).unsqueeze(0)))
    worth = torch.ones(9)
    worth[7] = 0.0
    after = turned.apply(decide(1, worth, turned))
    got = dict(zip(after.origin[0].tolist(), after.counts[0].tolist(), strict=True))
    assert {place for place, scale in got.items() if scale > 1} == {0, 2, 3, 4, 5}
    assert after.origin[0, after.source[0, 1]].item() in {0, 2, 4}


def test_worth_is_difficulty_times_broadcast_each_its_largest_head() -> None:
    full = torch.tensor([[[[0.5, 0.5], [0.4, 0.6]], [[0.8, 0.2], [0.9, 0.1]]]])
    assert usefulness(full, 0)[0].tolist() == pytest.approx([0.8 * 1.7, 0.6 * 1.1])
    assert usefulness(full, 1)[0].tolist() == pytest.approx([0.6 * 1.1])


def test_a_token_made_of_several_has_no_patch_of_its_own() -> None:
    tokens = Tokens.start(torch.zeros(1, 5, 2), prefix=1)
    fused = Assignment(torch.tensor([[0, 3]]), torch.tensor([[1, 2, 4]]), torch.full((1, 1, 3), 1 / 3))
    after = tokens.apply(fused)
    assert after.origin.tolist() == [[0, 3, -1]]
    assert after.rows(torch.tensor([0, 0])).origin.tolist() == [[0, 3, -1]] * 2


@pytest.mark.parametrize(
    ("width", "heads", "leaving", "published"),
    [
        # The paper's GMACs for DeiT-B, and 26% less for DeiT-S.
        (768, 12, 4, 15.3),
        (768, 12, 8, 13.1),
        (768, 12, 14, 9.8),
        (384, 6, 8, 0.74 * 4.6),
    ],
)
def test_published_figures(width: int, heads: int, leaving: int, published: float) -> None:
    g = Geometry(width=width, heads=heads)
    after = reduction.create(f"gtp:{leaving}", Bare(g)).after(197, 1, g.depth)
    assert gmacs(g, 224, after) == pytest.approx(published, rel=0.02)


def test_one_patch_always_stays() -> None:
    reducer = reduction.create("gtp:8", Bare(PLAIN))
    assert reducer.after(37, 1, 6) == (29, 21, 13, 5, 2, 2)
    assert run(build(PLAIN), pictures(PLAIN), "gtp:8").tokens.tolist() == [2, 2, 2]


def test_attention_is_seen_only_where_somebody_leaves() -> None:
    assert reduction.create("gtp:2", Bare(PLAIN)).needs(0) is Needs.FULL
    assert reduction.create("gtp:0", Bare(PLAIN)).needs(0) is None


@pytest.mark.parametrize("argument", ["", ":", ":-1", ":1.5", ":many", ":12345"])
def test_what_is_no_whole_number_is_refused(argument: str) -> None:
    with pytest.raises(BadPlan, match="leave at each block"):
        reduction.create(f"gtp{argument}", Bare(PLAIN))
