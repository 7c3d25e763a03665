"""ToMe in the trunk against a reference written from the paper, one image, head and pair at a time."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from foveate.core.errors import BadPlan
from foveate.models import reduction
from foveate.models.layers.blocks import Block
from foveate.models.layers.config import ViTConfig
from foveate.models.layers.reducer import Attention, Needs, UntrainedContext
from foveate.models.layers.tokens import Tokens
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


def reference_merge(tokens: list[Token], keys: Tensor, prefix: int, r: int) -> list[Token]:
    """Section 3.2 and appendix D: the remaining tokens, in the paper's order."""
    a = [i for i in range(len(tokens)) if i % 2 == 0 and i >= prefix]
    b = [i for i in range(len(tokens)) if i % 2 == 1 and i >= prefix]
    edges = []
    for i in a:
        similarity = [float(keys[i] @ keys[j] / (keys[i].norm() * keys[j].norm())) for j in b]
        if b:
            edges.append((max(similarity), i, b[similarity.index(max(similarity))]))
    strongest = sorted(edges, reverse=True)[: min(r, (len(tokens) - prefix) // 2)]
    target = {i: j for _, i, j in strongest}
    remaining = [tokens[i] for i in a if i not in target]
    for j in b:
        group = [tokens[j], *(tokens[i] for i in target if target[i] == j)]
        total = torch.stack([len(t.members) * t.x for t in group]).sum(0)
        members = frozenset().union(*(t.members for t in group))
        remaining.append(Token(total / len(members), len(members), members))
    return tokens[:prefix] + remaining


def reference(model: ElasticViT, image: Tensor, r: int) -> list[list[Token]]:
    def first_half(block: Block, tokens: list[Token], index: int) -> list[Token]:
        attention = block_attention(block, tokens)
        return reference_merge(
            add_attention(block, tokens, attention), attention.keys.mean(0), model.config.prefix, r
        )

    return tokens_per_block(model, image, first_half)


@pytest.mark.parametrize("r", [1, 3, 8, 100])
@pytest.mark.parametrize("config", MERGED.values(), ids=MERGED)
def test_tokens_after_every_block_are_the_papers(config: ViTConfig, r: int) -> None:
    model, images = build(config), random_images(config)
    expected = [reference(model, image, r) for image in images]
    assert_same_tokens_per_block(model, images, f"tome:{r}", expected)
    assert_same_logits(model, images, f"tome:{r}", [classify(model, per_block[-1]) for per_block in expected])


def test_merging_no_tokens_needs_no_attention() -> None:
    reducer = reduction.create("tome:0", UntrainedContext(PLAIN))
    assert [reducer.needs(block) for block in range(6)] == [None] * 6
    assert reducer.after(37, 1, 6) == (37,) * 6


def test_at_most_half_of_the_patches_merge_in_a_block() -> None:
    reducer = reduction.create("tome:100", UntrainedContext(PLAIN))
    assert reducer.after(37, 1, 6) == (19, 10, 6, 4, 3, 2)
    assert reducer.after(38, 2, 3) == (20, 11, 7)
    assert reducer.needs(0) is Needs.KEYS
    few = reduction.create("tome:16", UntrainedContext(ViTConfig()))
    assert few.after(197, 1, 12) == (181, 165, 149, 133, 117, 101, 85, 69, 53, 37, 21, 11)


def test_the_most_similar_tokens_merge_weighted_by_count_and_ties_go_to_the_first() -> None:
    # Keys 2 and 6 equal key 5, and key 4 is half similar to key 1. The class token's key equals key 5 too.
    keys = torch.zeros(1, 1, 7, 4)
    for position, axes in enumerate([[0], [1], [0], [2], [1, 3], [0], [0]]):
        keys[0, 0, position, axes] = 1.0
    x = torch.arange(7.0).view(1, 7, 1)
    tokens = replace(Tokens.start(x, prefix=1), counts=torch.tensor([[1.0, 1, 2, 1, 1, 3, 5]]))
    one_merged = reduction.create("tome:1", UntrainedContext(PLAIN))(tokens, Attention(keys=keys), 0)
    assert one_merged.kept.tolist() == [[0, 4, 6, 1, 3, 5]]
    assert one_merged.absorbed is not None
    assert one_merged.absorbed.tolist() == [[2]]
    two_merged = tokens.apply(
        reduction.create("tome:2", UntrainedContext(PLAIN))(tokens, Attention(keys=keys), 0)
    )
    assert two_merged.counts.tolist() == [[1, 1, 1, 1, 10]]
    assert two_merged.x[0, :, 0].tolist() == pytest.approx([0, 4, 1, 3, (2 * 2 + 3 * 5 + 5 * 6) / 10])


def test_keys_are_compared_in_float32() -> None:
    generator = torch.Generator().manual_seed(5)
    tokens = Tokens.start(torch.randn(4, 197, 8, generator=generator), prefix=1)
    keys = (1 + 0.1 * torch.randn(4, 3, 197, 16, generator=generator)).bfloat16()
    reducer = reduction.create("tome:40", UntrainedContext(PLAIN))
    result = reducer(tokens, Attention(keys=keys), 0)
    assert torch.equal(result.kept, reducer(tokens, Attention(keys=keys.float()), 0).kept)


@pytest.mark.parametrize(
    ("width", "r", "published"), [(384, 8, 3.4), (384, 13, 2.7), (384, 16, 2.3), (192, 8, 0.92)]
)
def test_published_costs_of_deit(width: int, r: int, published: float) -> None:
    config = ViTConfig(width=width, heads=width // 64)
    assert cost(config, f"tome:{r}") == pytest.approx(published, rel=0.03)


@pytest.mark.parametrize(
    ("r", "depth", "width", "patch", "published"), [(8, 24, 1024, 16, 31.0), (7, 32, 1280, 14, 92.9)]
)
def test_published_costs_of_larger_models(
    r: int, depth: int, width: int, patch: int, published: float
) -> None:
    config = ViTConfig(width=width, depth=depth, heads=16, patch_size=patch)
    assert cost(config, f"tome:{r}") == pytest.approx(published, rel=0.01)


def test_a_count_of_the_real_operations() -> None:
    config = ViTConfig(width=384, heads=6)
    # Matching is counted as well.
    assert cost(config, "tome:13") == pytest.approx(counted_cost(config, "tome:13"), rel=0.03)


MAE = replace(PLAIN, pool="avg", fc_norm=True)


@pytest.mark.parametrize("config", [MAE, replace(MAE, registers=2)])
def test_a_model_that_pools_beside_a_class_token_has_plain_attention(config: ViTConfig) -> None:
    """As in the authors' patch for MAE, whose `prop_attn` is False; pooling still weights by size."""
    model, images = build(config), random_images(config)

    def plain_attention(block: Block, tokens: list[Token], index: int) -> list[Token]:
        sized = [replace(token, size=1.0) for token in tokens]
        attention = block_attention(block, sized)
        updated = [replace(new, size=old.size) for new, old in zip(
            add_attention(block, sized, attention), tokens, strict=True)]  # fmt: skip
        return reference_merge(updated, attention.keys.mean(0), config.prefix, 5)

    expected = [classify(model, tokens_per_block(model, image, plain_attention)[-1]) for image in images]
    assert_same_logits(model, images, "tome:5", expected)


def test_other_models_have_proportional_attention() -> None:
    for config in (PLAIN, replace(PLAIN, class_token=False, pool="avg"), replace(PLAIN, fc_norm=True)):
        assert reduction.create("tome:5", UntrainedContext(config)).proportional


@pytest.mark.parametrize(
    ("spec", "merged"),
    [
        ("tome:8:0", (8,) * 12),
        ("tome:8:-1", (16, 14, 13, 11, 10, 8, 7, 5, 4, 2, 1, 0)),
        ("tome:8:1", (0, 1, 2, 4, 5, 7, 8, 10, 11, 13, 14, 16)),
        ("tome:8:-0.5", (12, 11, 10, 9, 9, 8, 7, 6, 6, 5, 4, 4)),
        ("tome:13:-1", (26, 23, 21, 18, 16, 14, 11, 9, 7, 4, 2, 0)),
    ],
)
def test_a_trend_gives_the_schedule_of_the_authors_code(spec: str, merged: tuple[int, ...]) -> None:
    counts = (197, *reduction.create(spec, UntrainedContext(ViTConfig())).after(197, 1, 12))
    assert tuple(before - after for before, after in pairwise(counts)) == merged


def test_a_decreasing_schedule_is_the_papers_merge_at_each_block() -> None:
    model, images = build(PLAIN), random_images(PLAIN)
    merged = (6, 4, 3, 2, 1, 0)

    def first_half(block: Block, tokens: list[Token], index: int) -> list[Token]:
        attention = block_attention(block, tokens)
        tokens = add_attention(block, tokens, attention)
        return reference_merge(tokens, attention.keys.mean(0), 1, merged[index]) if merged[index] else tokens

    expected = [tokens_per_block(model, image, first_half) for image in images]
    assert_same_tokens_per_block(model, images, "tome:3:-1", expected)


def test_one_block_can_have_a_trend() -> None:
    assert reduction.create("tome:3:-1", UntrainedContext(replace(PLAIN, depth=1))).after(37, 1, 1) == (31,)


@pytest.mark.parametrize(
    "argument",
    [
        "",
        ":",
        ":-1",
        ":0.5",
        ":1e1",
        ":three",
        ":\u0663",
        ":12345",
        ":8:8",
        ":8:",
        ":8:-1.5",
        ":8:--1",
        ":8:1:1",
    ],
)
def test_an_argument_that_is_no_whole_number_is_refused(argument: str) -> None:
    with pytest.raises(BadPlan, match="tome takes how many"):
        reduction.create(f"tome{argument}", UntrainedContext(PLAIN))


def test_missing_keys_raise() -> None:
    tokens = Tokens.start(torch.zeros(1, 5, 4), prefix=1)
    with pytest.raises(ValueError, match="keys"):
        reduction.create("tome:1", UntrainedContext(PLAIN))(tokens, Attention(), 0)
