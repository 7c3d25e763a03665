"""ATS in the trunk against a reference written from the paper, which runs each image alone and unpadded."""

from bisect import insort
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from foveate.core.errors import BadPlan
from foveate.core.plan import Plan
from foveate.models import reduction
from foveate.models.layers.blocks import Block
from foveate.models.layers.config import ViTConfig
from foveate.models.layers.reducer import Attention, Needs, UntrainedContext
from foveate.models.layers.tokens import Assignment, Tokens
from foveate.models.reduction.ats import padding_waste, sample
from foveate.models.vit.vit import ElasticViT
from tests.support import references
from tests.support.references import (
    PLAIN,
    REGISTERS,
    TWO_PREFIX,
    BlockAttention,
    Token,
    add_attention,
    assert_same_tokens_per_block,
    block_attention,
    run,
    tokens_per_block,
)

CONFIGS = {"plain": PLAIN, "two prefix": TWO_PREFIX, "registers": replace(REGISTERS, pool="avg")}
POINTS = {"0.3": 11, "0.7": 26, "197": 36, "20": 20}
"""Sampling points of an input of 36 patches and as many prefix tokens as are added to a whole number."""


pytestmark = pytest.mark.usefixtures("inference_on_one_thread")

every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def build(config: ViTConfig) -> ElasticViT:
    return references.build(config, sharpness=0.2)


def random_images(config: ViTConfig) -> Tensor:
    """Five images of very different contrast, which keep different numbers of tokens."""
    contrasts = torch.tensor([0.0, 0.3, 1.0, 3.0, 10.0])
    return references.random_images(config, 5) * contrasts[:, None, None, None]


def argument(text: str, prefix: int) -> str:
    """Whole numbers count the prefix."""
    return str(int(text) + prefix) if float(text) > 1 else text


def reference_significance(attention: BlockAttention) -> list[float]:
    """The class token's attention to each token, times the length of its value."""
    class_row, lengths = attention.weights[:, 0].sum(0), attention.values.norm(dim=(0, 2))
    return [float(a) * float(length) for a, length in zip(class_row, lengths, strict=True)]


def reference_sample(scores: list[float], points: int) -> list[int]:
    """Section 3.2 with the points of the authors' code, one point at a time; positions in order."""
    order = sorted(range(len(scores)), key=lambda i: scores[i])
    total, running, cdf = sum(scores), 0.0, []
    for i in order:
        running += scores[i] / total
        cdf.append(running)
    cdf = [(c - cdf[0]) / (cdf[-1] - cdf[0]) for c in cdf]
    start = min(c for c in cdf if c > 0)
    chosen: list[int] = []
    for step in range(points):
        y = start + (1 - start) * step / (points - 1)
        nearest = order[min(range(len(cdf)), key=lambda i: abs(cdf[i] - y))]
        if nearest not in chosen:
            insort(chosen, nearest)
    return chosen


def reference(model: ElasticViT, image: Tensor, points: int) -> list[list[Token]]:
    """The tokens of one image after each block. The first block does not sample."""
    prefix = model.config.prefix

    def first_half(block: Block, tokens: list[Token], index: int) -> list[Token]:
        attention = block_attention(block, tokens)
        tokens = add_attention(block, tokens, attention)
        if index == 0:
            return tokens
        chosen = reference_sample(reference_significance(attention)[prefix:], points)
        return tokens[:prefix] + [tokens[prefix + i] for i in chosen]

    return tokens_per_block(model, image, first_half)


@every_config
@pytest.mark.parametrize("points", POINTS)
def test_a_padded_batch_gives_each_image_its_own_result(config: ViTConfig, points: str) -> None:
    model, images = build(config), random_images(config)
    spec = f"ats:{argument(points, config.prefix)}"
    alone = [reference(model, image, POINTS[points]) for image in images]
    assert_same_tokens_per_block(model, images, spec, alone)
    assert len({len(per_block[-1]) for per_block in alone}) > 1, "nothing was padded"


@every_config
def test_the_output_counts_tokens_of_each_image_without_padding(config: ViTConfig) -> None:
    model, images = build(config), random_images(config)
    out = run(model, images, "ats:0.7")
    alone = [run(model, image.unsqueeze(0), "ats:0.7") for image in images]
    assert out.after is not None
    for row, single in enumerate(alone):
        assert single.after is not None
        assert torch.equal(out.after[row], single.after[0])
        assert (out.logits[row] - single.logits[0]).abs().max() < 1e-5


def test_both_attention_kernels_ignore_padding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, images = build(PLAIN), random_images(PLAIN)
    explicit = run(model, images, "ats:0.7")
    monkeypatch.setattr("foveate.models.layers.blocks.EXPLICIT_LENGTH", 0)
    fused = run(model, images, "ats:0.7")
    assert explicit.after is not None
    assert fused.after is not None
    assert torch.equal(fused.after, explicit.after)
    assert (fused.logits - explicit.logits).abs().max() < 1e-5


def test_no_batch_is_wider_than_its_cap() -> None:
    model, images = build(PLAIN), random_images(PLAIN)
    for spec in ("ats:0.1", "ats:0.5", "ats:9", "ats:197"):
        bound = reduction.create(spec, model).after(37, 1, 6)
        after = run(model, images, spec).after
        assert after is not None
        assert torch.all(after <= torch.tensor(bound))
        assert torch.all(after > 1)


@every_config
def test_keeping_all_tokens_is_exactly_the_identity(config: ViTConfig) -> None:
    model, images = build(config), random_images(config)
    assert torch.equal(run(model, images, "ats:1").logits, run(model, images, "none").logits)


def test_as_many_points_as_tokens_still_drop_some() -> None:
    model, images = build(PLAIN), random_images(PLAIN)
    assert torch.all(run(model, images, "ats:37").tokens < 37)
    assert torch.equal(run(model, images, "ats:37").logits, run(model, images, "ats:197").logits)


@pytest.mark.parametrize("points", [1, 2, 7, 30])
def test_samples_match_the_reference_with_any_padding(points: int) -> None:
    generator = torch.Generator().manual_seed(points)
    for patches in (2, 3, 8, 30):
        scores = torch.rand(16, patches, generator=generator) ** 4
        padded = torch.cat([scores, torch.rand(16, 5, generator=generator)], dim=1)
        present = (torch.arange(patches + 5) < patches).expand(16, -1)
        shuffle = torch.randperm(patches + 5, generator=generator)
        result = sample(padded[:, shuffle], present[:, shuffle], points)[:, shuffle.argsort()]
        assert not result[:, patches:].any()
        assert torch.equal(
            result[:, :patches], sample(scores, torch.ones_like(scores, dtype=torch.bool), points)
        )
        for row, chosen in zip(scores.double(), result, strict=True):
            # The reference's last point is the total score. A single point is that one.
            expected = reference_sample(row.tolist(), points) if points > 1 else [int(row.argmax())]
            assert chosen.nonzero().flatten().tolist() == expected


def test_the_most_significant_token_is_always_chosen() -> None:
    scores = torch.tensor([[0.01, 0.02, 0.03, 0.04, 0.9]])
    assert sample(scores, scores > 0, 1).tolist() == [[False, False, False, False, True]]
    assert sample(scores, scores > 0, 2).tolist() == [[False, True, False, False, True]]


@pytest.mark.parametrize("score", [0.0, 1e-30, 1.0, 1e30])
@pytest.mark.parametrize("patches", [1, 2, 9])
def test_equal_or_zero_scores_keep_at_least_one_token(score: float, patches: int) -> None:
    scores = torch.full((2, patches), score)
    present = torch.ones(2, patches, dtype=torch.bool)
    present[1, 1:] = False
    for points in (1, 2, patches):
        chosen = sample(scores, present, points)
        assert torch.all(chosen.sum(1) >= 1)
        assert torch.all(chosen.sum(1) <= points)
        assert not (chosen & ~present).any()


def test_padding_is_the_class_token_with_count_zero() -> None:
    reducer = reduction.create("ats:4", UntrainedContext(PLAIN))
    tokens = Tokens.start(torch.zeros(2, 5, 6), prefix=1)
    class_row = torch.tensor([[0.2, 0.2, 0.2, 0.2, 0.2], [0.1, 0.0, 0.0, 0.9, 0.0]])
    assignment: Assignment = reducer(
        tokens, Attention(class_row=class_row, values=torch.ones(2, 3, 5, 2)), block=4
    )
    assert assignment.counts is not None
    assert assignment.kept.tolist() == [[0, 2, 3, 4], [0, 3, 0, 0]]
    assert assignment.counts.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]


def test_a_value_with_a_large_norm_makes_a_token_significant() -> None:
    reducer = reduction.create("ats:2", UntrainedContext(PLAIN))
    values = torch.ones(1, 3, 5, 2)
    values[0, 1, 2] = 100  # in one head of three
    attention = Attention(class_row=torch.full((1, 5), 0.2), values=values)
    assert reducer(Tokens.start(torch.zeros(1, 5, 6), 1), attention, block=4).kept.tolist() == [[0, 2]]


def test_blocks_that_sample() -> None:
    def sampling(depth: int) -> list[int]:
        reducer = reduction.create("ats:0.5", UntrainedContext(ViTConfig(depth=depth)))
        return [b for b in range(depth) if reducer.needs(b) == Needs.CLASS_ROW | Needs.VALUES]

    assert sampling(12) == list(range(3, 12))
    assert sampling(24) == list(range(6, 24))
    assert sampling(1) == [0]


def test_a_whole_number_counts_the_prefix_and_a_share_does_not() -> None:
    def max_patches(argument: str, registers: int) -> int:
        reducer = reduction.create(f"ats:{argument}", UntrainedContext(ViTConfig(registers=registers)))
        prefix = 1 + registers
        return reducer.after(196 + prefix, prefix, 12)[-1] - prefix

    assert [max_patches("197", 0), max_patches("100", 0), max_patches("2", 0)] == [196, 99, 1]
    assert [max_patches("197", 4), max_patches("2", 4), max_patches("9999", 4)] == [192, 1, 196]
    assert [max_patches("0.5", 0), max_patches("0.5", 4), max_patches("0.001", 4)] == [98, 98, 1]


def test_equal_arguments_are_normalised_in_a_plan() -> None:
    assert Plan.parse("vit-t@224/ats:1.0").reducer == "ats:1"
    assert Plan.parse("vit-t@224/ats:197").reducer == "ats:197"
    assert reduction.create("ats:1", UntrainedContext(PLAIN)) == reduction.create(
        "ats:1.0", UntrainedContext(PLAIN)
    )


def test_padding_waste_is_the_share_of_slots_without_a_token() -> None:
    assert padding_waste(torch.tensor([[10, 8], [10, 8]])) == 0
    assert padding_waste(torch.tensor([[10, 8], [10, 4]])) == pytest.approx(4 / 36)
    # A row that has left the batch takes no slot.
    assert padding_waste(torch.tensor([[10, 0], [10, 4]])) == 0


@pytest.mark.parametrize("argument", ["", ":", ":0", ":1.5", ":-1", ":nan", ":half"])
def test_an_argument_that_is_no_share_or_number_is_refused(argument: str) -> None:
    with pytest.raises(BadPlan, match="how many tokens"):
        reduction.create(f"ats{argument}", UntrainedContext(PLAIN))


def test_a_model_without_class_token_is_refused() -> None:
    with pytest.raises(BadPlan, match="class token"):
        reduction.create("ats:0.5", UntrainedContext(ViTConfig(class_token=False, pool="avg")))
