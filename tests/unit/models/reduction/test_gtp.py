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
    add_attention,
    assert_same_logits,
    block_attention,
    build,
    classify,
    cost,
    random_images,
    run,
    tokens_per_block,
)

CONFIGS = {
    "plain": PLAIN,
    "two prefix": replace(TWO_PREFIX, image_size=80),
    "registers": REGISTERS,
    "no prefix": replace(PLAIN, image_size=80, class_token=False, pool="avg"),
}
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())

pytestmark = pytest.mark.usefixtures("inference_on_one_thread")


def cell(token: Token, config: ViTConfig) -> tuple[int, int] | None:
    """Row and column of the token's patch; a prefix token has none."""
    (position,) = token.members
    if position < config.prefix:
        return None
    return divmod(position - config.prefix, config.image_size // config.patch_size)


def neighbours(cell: tuple[int, int], side: int) -> set[tuple[int, int]]:
    row, column = cell
    around = {(row + r, column + c) for r in (-1, 0, 1) for c in (-1, 0, 1)} - {cell}
    return {(r, c) for r, c in around if 0 <= r < side and 0 <= c < side}


def reference_propagation(tokens: list[Token], maps: Tensor, leaving: int, config: ViTConfig) -> list[Token]:
    side, cells = config.image_size // config.patch_size, [cell(token, config) for token in tokens]
    usefulnesses = {}
    for i, own in enumerate(cells):
        if own is not None:
            difficulty = max(float(weights[i, i]) for weights in maps)
            usefulnesses[i] = difficulty * max(float(weights[:, i].sum()) for weights in maps)
    leaving_tokens = sorted(usefulnesses, key=lambda i: usefulnesses[i])[
        : min(leaving, len(usefulnesses) - 1)
    ]
    kept = [i for i in range(len(tokens)) if i not in leaving_tokens]
    after = []
    for i in kept:
        x, scale, own = tokens[i].x, tokens[i].size, cells[i]
        for j in leaving_tokens:
            other = cells[j]
            if own is not None and other is not None and other in neighbours(own, side):
                degrees = len(neighbours(own, side)) * len(neighbours(other, side))
                x = x + 0.1 / math.sqrt(degrees) * tokens[j].x
                scale = scale + 0.1 / math.sqrt(degrees) * tokens[j].size
        after.append(Token(x, scale, tokens[i].members))
    return after


def reference(model: ElasticViT, image: Tensor, leaving: int) -> list[Token]:
    """The tokens of one image (3, S, S) after the last block."""

    def first_half(block: Block, tokens: list[Token], index: int) -> list[Token]:
        attention = block_attention(block, tokens)
        return reference_propagation(
            add_attention(block, tokens, attention), attention.weights, leaving, model.config
        )

    return tokens_per_block(model, image, first_half)[-1]


@every_config
@pytest.mark.parametrize("leaving", [1, 3, 5])
def test_logits_are_the_papers(config: ViTConfig, leaving: int) -> None:
    model, images = build(config), random_images(config)
    expected = [classify(model, reference(model, image, leaving)) for image in images]
    assert_same_logits(model, images, f"gtp:{leaving}", expected)


@every_config
def test_every_token_keeps_its_origin_and_its_scale(config: ViTConfig) -> None:
    model, image = build(config), random_images(config, 1)
    side, reducer = config.image_size // config.patch_size, reduction.create("gtp:3", model)
    tokens: Tokens = model.embed(image)
    for index, block in enumerate(model.blocks):
        tokens = block(tokens, reducer, index)
    result: dict[tuple[int, int] | None, float] = {
        (origin // side, origin % side): scale
        for origin, scale in zip(
            (tokens.origin[0, config.prefix :] - config.prefix).tolist(),
            tokens.counts[0, config.prefix :].tolist(),
            strict=True,
        )
    }
    last = reference(model, image[0], 3)[config.prefix :]
    expected = {cell(token, config): token.size for token in last}
    assert result.keys() == expected.keys()
    assert all(result[own] == pytest.approx(scale, rel=1e-5) for own, scale in expected.items())
    assert any(scale > 1 for scale in expected.values())


@pytest.mark.parametrize("config", [PLAIN, CONFIGS["two prefix"]])
def test_no_leaving_token_is_exactly_the_identity(config: ViTConfig) -> None:
    model, images = build(config), random_images(config, 2)
    assert torch.equal(run(model, images, "gtp:0").logits, run(model, images, "none").logits)


def decide(leaving: int, usefulnesses: Tensor, tokens: Tokens) -> Assignment:
    """The assignment if token i attends only to itself, with the weight usefulnesses[i]."""
    full = torch.diag_embed(usefulnesses).expand(len(tokens.x), 2, -1, -1)
    return reduction.create(f"gtp:{leaving}", UntrainedContext(PLAIN))(tokens, Attention(full=full), 0)


def test_the_nearest_staying_token_represents_a_leaving_tokens_patch() -> None:
    # On a 3 x 3 grid all but the first corner and the last leave.
    usefulnesses = torch.full((9,), 0.1)
    usefulnesses[[0, 8]] = 1.0
    tokens = Tokens.start(torch.arange(9.0).view(1, 9, 1), prefix=0)
    after = tokens.apply(decide(7, usefulnesses, tokens))
    assert after.origin.tolist() == [[0, 8]]
    assert after.source.tolist() == [[0, 0, 0, 0, 0, 1, 0, 1, 1]]
    # A corner has two edges as neighbours, of degree 5, and the centre, of degree 8. The other corners are
    # neighbours of neither staying token and are lost.
    edge, centre = 0.1 / math.sqrt(15), 0.1 / math.sqrt(24)
    first, last = after.x[0, :, 0].tolist()
    assert first == pytest.approx(0 + edge * (1 + 3) + centre * 4)
    assert last == pytest.approx(8 + edge * (5 + 7) + centre * 4)
    assert after.counts[0].tolist() == pytest.approx([1 + 2 * edge + centre] * 2)


def test_neighbours_are_those_of_the_image_after_tokens_have_moved() -> None:
    # The order of the tokens is reversed. Then the middle of the former first row leaves.
    tokens = Tokens.start(torch.arange(9.0).view(1, 9, 1), prefix=0)
    turned = tokens.apply(Assignment(torch.arange(8, -1, -1).unsqueeze(0)))
    usefulnesses = torch.ones(9)
    usefulnesses[7] = 0.0
    after = turned.apply(decide(1, usefulnesses, turned))
    scales = dict(zip(after.origin[0].tolist(), after.counts[0].tolist(), strict=True))
    assert {cell for cell, scale in scales.items() if scale > 1} == {0, 2, 3, 4, 5}
    assert after.origin[0, after.source[0, 1]].item() in {0, 2, 4}


def test_usefulness_is_the_product_of_the_maxima_of_difficulty_and_broadcast() -> None:
    full = torch.tensor([[[[0.5, 0.5], [0.4, 0.6]], [[0.8, 0.2], [0.9, 0.1]]]])
    assert usefulness(full, 0)[0].tolist() == pytest.approx([0.8 * 1.7, 0.6 * 1.1])
    assert usefulness(full, 1)[0].tolist() == pytest.approx([0.6 * 1.1])


def test_a_token_made_of_several_has_no_origin() -> None:
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
    assert run(build(PLAIN), random_images(PLAIN), "gtp:8").tokens.tolist() == [2, 2, 2]


def test_attention_is_needed_only_where_tokens_leave() -> None:
    assert reduction.create("gtp:2", UntrainedContext(PLAIN)).needs(0) is Needs.FULL
    assert reduction.create("gtp:0", UntrainedContext(PLAIN)).needs(0) is None


@pytest.mark.parametrize("argument", ["", ":", ":-1", ":1.5", ":many", ":12345"])
def test_an_argument_that_is_no_whole_number_is_refused(argument: str) -> None:
    with pytest.raises(BadPlan, match="leave at each block"):
        reduction.create(f"gtp{argument}", UntrainedContext(PLAIN))
