"""Zero-TPrune in the trunk against a reference written from the paper, one image and one head at a time."""

import itertools
import math
from dataclasses import replace
from statistics import fmean, pvariance

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.core.errors import BadPlan
from foveate.models import reduction
from foveate.models.layers.blocks import Block
from foveate.models.layers.config import ViTConfig
from foveate.models.layers.reducer import Attention, Needs, UntrainedContext
from foveate.models.layers.tokens import Assignment, Tokens
from foveate.models.vit.vit import ElasticViT
from tests.support import references
from tests.support.references import (
    PLAIN,
    REGISTERS,
    TWO_PREFIX,
    Token,
    add_attention,
    assert_same_logits,
    block_attention,
    classify,
    cost,
    random_images,
    run,
    tokens_per_block,
)

CONFIGS = {
    "plain": PLAIN,
    "two prefix": TWO_PREFIX,
    "registers": replace(REGISTERS, qk_norm=True),
    "no class token": replace(PLAIN, class_token=False, registers=2, pool="avg"),
}
LAYERS = {
    "0.7": {0: (31, 31), 1: (26, 26), 2: (21, 16), 4: (11, 8), 5: (4, 4)},
    "0.4": {0: (25, 25), 1: (14, 14), 2: (7, 4), 4: (2, 1), 5: (1, 1)},
}
"""By argument, for each block that prunes: the rest of 36 patches after S and after I."""


pytestmark = pytest.mark.usefixtures("inference_on_one_thread")

Matrix = list[list[float]]


def build(config: ViTConfig) -> ElasticViT:
    """Some heads of this model are peaked and some are not, so the head filter has an effect."""
    return references.build(config, sharpness=0.4)


def page_rank(matrix: Matrix, start: list[float], votes: int) -> list[float]:
    scores = start
    for _ in range(votes):
        scores = [sum(scores[j] * matrix[j][i] for j in range(len(matrix))) for i in range(len(matrix))]
    return scores


def importance(matrices: list[Matrix], start: list[float], votes: int, prefix: int) -> list[float]:
    """Ranks joined over heads. A head is ignored if its scores, 1 on average, vary too little or too much."""
    ranks = [page_rank(matrix, start, votes)[prefix:] for matrix in matrices]
    variances = [pvariance([score / fmean(rank) for score in rank]) for rank in ranks]
    informative = [r for r, v in zip(ranks, variances, strict=True) if 0.01 <= v <= 10] or ranks
    return [math.sqrt(fmean(s * s for s in scores)) for scores in zip(*informative, strict=True)]


def s_stage(keys: Tensor, ranks: list[float], count: int) -> list[int]:
    """The patch tokens that remain after the most redundant ones of the less important half are dropped."""
    order = sorted(range(len(ranks)), key=lambda i: -ranks[i])
    half = len(order) - len(order) // 2
    unit = keys / keys.norm(dim=1, keepdim=True)
    similarity = {i: max(float(unit[i] @ unit[j]) for j in order[:half]) for i in order[half:]}
    distinct = sorted(order[half:], key=lambda i: -similarity[i])[len(order) - count :]
    return sorted(order[:half] + distinct)


def among(matrix: Matrix, kept: list[int]) -> Matrix:
    rows = [[matrix[i][j] for j in kept] for i in kept]
    return [[weight / sum(row) for weight in row] for row in rows]


def prune(matrices: Tensor, keys: Tensor, prefix: int, cls: bool, layer: tuple[int, int]) -> list[int]:
    """Positions of the tokens that go on: I', then S, then I."""
    distinct, important = layer
    graph: list[Matrix] = [matrix.tolist() for matrix in matrices]
    start = [1.0] * len(keys)
    if cls:
        start[0] = math.sqrt(len(keys))
    left = s_stage(keys[prefix:], importance(graph, start, 1, prefix), distinct)
    kept = list(range(prefix)) + [prefix + i for i in left]
    if important == distinct:
        return kept
    scores = importance([among(m, kept) for m in graph], [start[i] for i in kept], 5, prefix)
    best = sorted(sorted(range(len(left)), key=lambda i: -scores[i])[:important])
    return list(range(prefix)) + [kept[prefix + i] for i in best]


def reference(model: ElasticViT, image: Tensor, layers: dict[int, tuple[int, int]]) -> Tensor:
    """Logits of one image (3, S, S)."""
    config = model.config

    def first_half(block: Block, tokens: list[Token], index: int) -> list[Token]:
        attention = block_attention(block, tokens)
        tokens = add_attention(block, tokens, attention)
        if index not in layers:
            return tokens
        keys = torch.cat(list(attention.keys), dim=1)
        kept = prune(attention.weights, keys, config.prefix, config.class_token, layers[index])
        return [tokens[i] for i in kept]

    return classify(model, tokens_per_block(model, image, first_half)[-1])


@pytest.mark.parametrize("keep", LAYERS)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_logits_are_the_papers(config: ViTConfig, keep: str) -> None:
    model, images = build(config), random_images(config)
    expected = [reference(model, image, LAYERS[keep]) for image in images]
    assert_same_logits(model, images, f"zerotprune:{keep}", expected)


@pytest.mark.parametrize("keep", LAYERS)
def test_dropped_tokens_leave_no_trace_and_the_others_count_once(keep: str) -> None:
    model = build(PLAIN)
    reducer = reduction.create(f"zerotprune:{keep}", model)
    tokens: Tokens = model.embed(random_images(PLAIN))
    left = 36
    for index, block in enumerate(model.blocks):
        tokens = block(tokens, reducer, index)
        left = LAYERS[keep].get(index, (0, left))[1]
        assert len(tokens) == 1 + left == reducer.after(37, 1, 6)[index]
        assert torch.all(tokens.counts == 1)
        assert torch.all((tokens.source >= 0).sum(1) == left)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_keeping_all_tokens_is_exactly_the_identity(config: ViTConfig) -> None:
    model, images = build(config), random_images(config, 2)
    assert torch.equal(run(model, images, "zerotprune:1").logits, run(model, images, "none").logits)


HARD = ViTConfig(image_size=32, patch_size=8, width=8, depth=12, heads=1, classes=2)
"""16 patches. The I-stage drops most at the 9th block of 12."""


def decide(keep: str, heads: list[Tensor], keys: Tensor | None = None) -> Assignment:
    """The assignment of the 9th block of 12 for these heads' attention, each (17, 17), and keys (17, d)."""
    reducer = reduction.create(f"zerotprune:{keep}", UntrainedContext(HARD))
    if keys is None:
        keys = torch.eye(17)
    tokens = Tokens.start(torch.zeros(1, 17, 8), prefix=1)
    attention = Attention(full=torch.stack(heads).unsqueeze(0), keys=keys.expand(1, 1, -1, -1))
    return reducer(tokens, attention, block=8)


def towards(favoured: list[int], weight: float) -> Tensor:
    """Attention (17, 17) in which every token gives these tokens `weight` times as much as the others."""
    row = torch.ones(17)
    row[favoured] = weight
    return (row / row.sum()).expand(17, 17).clone()


def test_heads_with_level_or_extreme_scores_are_ignored() -> None:
    informative, level = towards([3, 5, 6, 9, 11, 14], 2), towards([8], 1.05)
    edge = towards([16], 1000)
    alone = decide("0.5", [informative])
    together = decide("0.5", [level, informative, edge])
    assert torch.equal(together.kept, alone.kept)
    assert set(alone.kept[0].tolist()) <= {0, 3, 5, 6, 9, 11, 14}
    # If all heads would be ignored, all are used, and the extreme one decides.
    assert 16 in decide("0.5", [level, edge]).kept[0].tolist()


def test_a_head_that_attends_to_a_few_tokens_is_used() -> None:
    broad, narrow = towards([9, 10, 11, 12, 13, 14], 2), towards([3, 5, 6], 20)
    assert {3, 5, 6} <= set(decide("0.3", [broad, narrow]).kept[0].tolist())


def test_of_two_similar_tokens_the_less_important_is_dropped() -> None:
    attention = towards([1, 2, 3, 4, 5, 6, 7, 8], 2)
    attention[:, 9] *= 1.5  # the most important of the less important half
    keys = torch.eye(17)
    keys[9] = keys[2]
    kept = decide("0.7", [attention], keys).kept[0].tolist()
    assert 2 in kept
    assert 9 not in kept


def test_a_token_that_attends_only_to_dropped_tokens_has_no_vote() -> None:
    attention, keys = towards([9, 10, 11, 12, 13, 14, 15, 16], 2), torch.eye(17)
    attention[:, 1] = 0
    attention[12], keys[1] = F.one_hot(torch.tensor(1), 17), keys[10]
    kept = decide("0.7", [attention], keys).kept[0].tolist()
    assert 1 not in kept
    assert set(range(9, 17)) <= set(kept)


def test_blocks_that_prune() -> None:
    def pruning(depth: int) -> list[int]:
        reducer = reduction.create("zerotprune:0.5", UntrainedContext(ViTConfig(depth=depth)))
        return [b + 1 for b in range(depth) if reducer.needs(b) == Needs.FULL | Needs.KEYS]

    assert pruning(12) == [1, 3, 6, 9, 11]
    assert pruning(24) == [1, 5, 11, 17, 21]
    assert pruning(2) == [1, 2]


def test_gflops_are_the_papers() -> None:
    """DeiT-S at 34.7% below its 4.6 GFLOPs, the figure of the abstract."""
    deit_s = ViTConfig(width=384, heads=6)
    assert cost(deit_s, "zerotprune:0.82") == pytest.approx(4.6 * (1 - 0.347), rel=0.03)


def test_smaller_arguments_cost_less() -> None:
    kept = [
        reduction.create(f"zerotprune:{n / 10}", UntrainedContext(ViTConfig())).after(197, 1, 12)
        for n in range(1, 11)
    ]
    assert all(sum(less) < sum(more) for less, more in itertools.pairwise(kept))
    assert kept[0][-1] > 1


@pytest.mark.parametrize("argument", ["", ":", ":0", ":1.1", ":-1", ":nan", ":half"])
def test_an_argument_that_is_no_keep_rate_is_refused(argument: str) -> None:
    with pytest.raises(BadPlan, match="keep rate"):
        reduction.create(f"zerotprune{argument}", UntrainedContext(PLAIN))
