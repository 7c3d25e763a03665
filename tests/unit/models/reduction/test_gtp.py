"""GTP in the trunk against a reference written from the paper, one image, head and token at a time."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from foveate.core.errors import BadPlan
from foveate.models import reduction
from foveate.models.layers.blocks import Block
from foveate.models.layers.config import ViTConfig
from foveate.models.layers.reducer import Attention, Needs, UntrainedContext
from foveate.models.layers.tokens import Assignment, Tokens
from foveate.models.reduction.gtp import usefulness
from foveate.models.vit.vit import ElasticViT
from tests.support.references import (
    PLAIN,
    REGISTERS,
    TWO_PREFIX,
    Token,
    assert_same_logits,
    attended,
    attention,
    build,
    classify,
    cost,
    pictures,
    run,
    walk,
)

CONFIGS = {
    "plain": PLAIN,
    "two prefix": replace(TWO_PREFIX, image_size=80),
    "registers": REGISTERS,
    "no prefix": replace(PLAIN, image_size=80, class_token=False, pool="avg"),
}
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())

pytestmark = pytest.mark.usefixtures("inference_on_one_thread")


def place(token: Token, config: ViTConfig) -> tuple[int, int] | None:
    """Row and column of the token's patch; a prefix token has none."""
    (position,) = token.members
    return (
        None
        if position < config.prefix
        else divmod(position - config.prefix, config.image_size // config.patch_size)
    )


def touching(place: tuple[int, int], side: int) -> set[tuple[int, int]]:
    row, column = place
    around = {(row + r, column + c) for r in (-1, 0, 1) for c in (-1, 0, 1)} - {place}
    return {(r, c) for r, c in around if 0 <= r < side and 0 <= c < side}


def reference_propagation(tokens: list[Token], maps: Tensor, leaving: int, config: ViTConfig) -> list[Token]:
    side, places = config.image_size // config.patch_size, [place(token, config) for token in tokens]
    worth = {}
    for i, own in enumerate(places):
        if own is not None:
            difficulty = max(float(weights[i, i]) for weights in maps)
            worth[i] = difficulty * max(float(weights[:, i].sum()) for weights in maps)
    gone = sorted(worth, key=lambda i: worth[i])[: min(leaving, len(worth) - 1)]
    kept = [i for i in range(len(tokens)) if i not in gone]
    after = []
    for i in kept:
        x, scale, own = tokens[i].x, tokens[i].size, places[i]
        for j in gone:
            other = places[j]
            if own is not None and other is not None and other in touching(own, side):
                degrees = len(touching(own, side)) * len(touching(other, side))
                x = x + 0.1 / math.sqrt(degrees) * tokens[j].x
                scale = scale + 0.1 / math.sqrt(degrees) * tokens[j].size
        after.append(Token(x, scale, tokens[i].members))
    return after


def reference(model: ElasticViT, image: Tensor, leaving: int) -> list[Token]:
    """The tokens of one image (3, S, S) after the last block."""

    def first_half(block: Block, tokens: list[Token], index: int) -> list[Token]:
        seen = attention(block, tokens)
        return reference_propagation(attended(block, tokens, seen), seen.weights, leaving, model.config)

    return walk(model, image, first_half)[-1]


@every_config
@pytest.mark.parametrize("leaving", [1, 3, 5])
def test_logits_are_the_papers(config: ViTConfig, leaving: int) -> None:
    model, images = build(config), pictures(config)
    expected = [classify(model, reference(model, image, leaving)) for image in images]
    assert_same_logits(model, images, f"gtp:{leaving}", expected)


@every_config
def test_every_token_knows_its_own_patch_and_its_scale(config: ViTConfig) -> None:
    model, image = build(config), pictures(config, 1)
    side, reducer = config.image_size // config.patch_size, reduction.create("gtp:3", model)
    tokens: Tokens = model.embed(image)
    for index, block in enumerate(model.blocks):
        tokens = block(tokens, reducer, index)
    found: dict[tuple[int, int] | None, float] = {
        (origin // side, origin % side): scale
        for origin, scale in zip(
            (tokens.origin[0, config.prefix :] - config.prefix).tolist(),
            tokens.counts[0, config.prefix :].tolist(),
            strict=True,
        )
    }
    last = reference(model, image[0], 3)[config.prefix :]
    expected = {place(token, config): token.size for token in last}
    assert found.keys() == expected.keys()
    assert all(found[own] == pytest.approx(scale, rel=1e-5) for own, scale in expected.items())
    assert any(scale > 1 for scale in expected.values())


@pytest.mark.parametrize("config", [PLAIN, CONFIGS["two prefix"]])
def test_nobody_leaving_is_the_identity_to_the_bit(config: ViTConfig) -> None:
    model, images = build(config), pictures(config, 2)
    assert torch.equal(run(model, images, "gtp:0").logits, run(model, images, "none").logits)


def decide(leaving: int, worth: Tensor, tokens: Tokens) -> Assignment:
    """The decision where token i attends itself with worth[i], and nothing else."""
    full = torch.diag_embed(worth).expand(len(tokens.x), 2, -1, -1)
    return reduction.create(f"gtp:{leaving}", UntrainedContext(PLAIN))(tokens, Attention(full=full), 0)


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
    config = ViTConfig(width=width, heads=heads)
    assert cost(config, f"gtp:{leaving}") == pytest.approx(published, rel=0.02)


def test_one_patch_always_stays() -> None:
    reducer = reduction.create("gtp:8", UntrainedContext(PLAIN))
    assert reducer.after(37, 1, 6) == (29, 21, 13, 5, 2, 2)
    assert run(build(PLAIN), pictures(PLAIN), "gtp:8").tokens.tolist() == [2, 2, 2]


def test_attention_is_seen_only_where_somebody_leaves() -> None:
    assert reduction.create("gtp:2", UntrainedContext(PLAIN)).needs(0) is Needs.FULL
    assert reduction.create("gtp:0", UntrainedContext(PLAIN)).needs(0) is None


@pytest.mark.parametrize("argument", ["", ":", ":-1", ":1.5", ":many", ":12345"])
def test_what_is_no_whole_number_is_refused(argument: str) -> None:
    with pytest.raises(BadPlan, match="leave at each block"):
        reduction.create(f"gtp{argument}", UntrainedContext(PLAIN))
