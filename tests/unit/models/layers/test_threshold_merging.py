"""Threshold merging in the trunk against a reference written from the paper, one image and pair at a time."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from foveate.models.layers.blocks import Block
from foveate.models.layers.config import ViTConfig
from foveate.models.layers.reducer import Attention, Needs
from foveate.models.layers.threshold_merging import ALWAYS, NEVER, ThresholdMerging
from foveate.models.layers.tokens import Tokens
from foveate.models.vit.vit import ElasticViT
from tests.support.checked_reducer import CheckedReducer, assert_consistent
from tests.support.references import (
    PLAIN,
    REGISTERS,
    TWO_PREFIX,
    Token,
    add_attention,
    assert_same_tokens,
    block_attention,
    build,
    random_images,
    tokens_per_block,
)

pytestmark = pytest.mark.usefixtures("inference_on_one_thread")
CONFIGS = {
    "plain": PLAIN,
    "two prefix": TWO_PREFIX,
    "registers": REGISTERS,
    "even": replace(PLAIN, image_size=80),
}
LEVELS = ((0.85,) * 6, (NEVER, 0.9, 0.8, NEVER, 0.7, 0.9), (ALWAYS,) * 6)


def reference_merge(
    tokens: list[Token], keys: Tensor, prefix: int, threshold: float, fewest: int
) -> list[Token]:
    """Section 3.1: edges above the threshold, the strongest first where too few tokens would be left."""
    even = [i for i in range(prefix, len(tokens)) if i % 2 == 0]
    odd = [i for i in range(prefix, len(tokens)) if i % 2 == 1]
    edges = []
    for i in even if odd else []:
        similarity = [float(keys[i] @ keys[j] / (keys[i].norm() * keys[j].norm())) for j in odd]
        edges.append((max(similarity), i, odd[similarity.index(max(similarity))]))
    strongest = sorted(edges, reverse=True)[: max(0, len(tokens) - prefix - fewest)]
    target = {i: j for similarity, i, j in strongest if similarity > threshold}
    remaining = []
    for j in range(prefix, len(tokens)):
        group = [tokens[j], *(tokens[i] for i in target if target[i] == j)]
        size = sum(token.size for token in group)
        mean = torch.stack([token.size * token.x for token in group]).sum(0) / size
        if j not in target:
            remaining.append(Token(mean, size, frozenset().union(*(token.members for token in group))))
    return tokens[:prefix] + remaining


def reference(
    model: ElasticViT, image: Tensor, thresholds: Sequence[float], fewest: int
) -> list[list[Token]]:
    def first_half(block: Block, tokens: list[Token], index: int) -> list[Token]:
        attention = block_attention(block, tokens)
        updated = add_attention(block, tokens, attention)
        return reference_merge(
            updated, attention.keys.mean(0), model.config.prefix, thresholds[index], fewest
        )

    return tokens_per_block(model, image, first_half)


@pytest.mark.parametrize("thresholds", LEVELS)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_tokens_after_every_block_are_the_papers(config: ViTConfig, thresholds: tuple[float, ...]) -> None:
    model, images, reducer = build(config), random_images(config), ThresholdMerging(thresholds, 4)
    expected = [reference(model, image, thresholds, 4) for image in images]
    tokens, checked, patches = model.embed(images), CheckedReducer(reducer), config.patches(config.image_size)
    for index, block in enumerate(model.blocks):
        tokens = block(tokens, checked, index)
        assert_consistent(tokens, patches, checked.plain_sums)
        for row, per_block in enumerate(expected):
            assert_same_tokens(tokens, row, per_block[index])
    if thresholds == LEVELS[0]:
        assert len(set(tokens.present.tolist())) > 1, "pictures should differ"
    assert tokens.present.min() >= config.prefix + 4


def test_a_row_gives_the_same_alone_and_in_a_batch() -> None:
    model, images, reducer = build(PLAIN), random_images(PLAIN, 4), ThresholdMerging((0.85,) * 6, 4)

    def run(batch: Tensor) -> Tokens:
        tokens = model.embed(batch)
        for index, block in enumerate(model.blocks):
            tokens = block(tokens, reducer, index)
        return tokens

    together = run(images)
    for row, image in enumerate(images):
        alone = run(image.unsqueeze(0))
        assert torch.equal(alone.source[0], together.source[row])
        assert (alone.grid()[0] - together.grid()[row]).abs().max() < 1e-4


def test_equal_tokens_merge_down_to_the_fewest() -> None:
    tokens = Tokens.start(torch.ones(2, 17, 8), 1)
    reducer, keys = ThresholdMerging((0.99,) * 5, 5), torch.ones(2, 2, 17, 4)
    counts = []
    for block in range(5):
        tokens = tokens.apply(reducer(tokens, Attention(keys=keys[:, :, : len(tokens)]), block))
        counts.append(len(tokens) - 1)
        assert tokens.x.isfinite().all() and torch.allclose(tokens.x, torch.ones(()))
        assert torch.equal(tokens.counts.sum(1), torch.full((2,), 17.0))
    assert counts == [8, 5, 5, 5, 5]


def test_a_block_that_never_merges_asks_for_nothing() -> None:
    reducer = ThresholdMerging((NEVER, 0.9), 4)
    assert [reducer.needs(block) for block in range(2)] == [None, Needs.KEYS]
    assert reducer.adaptive and reducer.after(37, 1, 2) == (37, 37)


@pytest.mark.parametrize(("prefix", "keys"), [(0, torch.ones(1, 1, 6, 2)), (1, None)])
def test_it_needs_keys_and_a_prefix_token(prefix: int, keys: Tensor | None) -> None:
    with pytest.raises(ValueError, match="needs the keys, and a prefix token"):
        ThresholdMerging((0.9,), 1)(Tokens.start(torch.ones(1, 6, 4), prefix), Attention(keys=keys), 0)


def test_a_single_patch_stays() -> None:
    tokens = Tokens.start(torch.ones(1, 2, 4), 1)
    assert (
        len(tokens.apply(ThresholdMerging((ALWAYS,), 1)(tokens, Attention(keys=torch.ones(1, 1, 2, 2)), 0)))
        == 2
    )
