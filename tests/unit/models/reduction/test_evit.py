"""EViT in the trunk against a reference written from the paper, one image and one head at a time."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from foveate.core.errors import BadPlan
from foveate.models import reduction
from foveate.models.layers.blocks import EXPLICIT_LENGTH, Block
from foveate.models.layers.config import ViTConfig
from foveate.models.layers.reducer import Attention, Needs, UntrainedContext
from foveate.models.layers.tokens import Tokens
from foveate.models.vit.vit import ElasticViT
from tests.support import references
from tests.support.references import (
    Token,
    add_attention,
    assert_same_logits,
    block_attention,
    build,
    classify,
    random_images,
    run,
    tokens_per_block,
)

PLAIN = replace(references.PLAIN, depth=12)
TWO_PREFIX = replace(references.TWO_PREFIX, depth=12)
REGISTERS = replace(references.REGISTERS, depth=12, qk_norm=True)
LONG = ViTConfig(image_size=368, depth=4, width=32, heads=2, classes=10)
"""23 x 23 patches: longer than the sequences for which attention uses the explicit kernel."""


pytestmark = pytest.mark.usefixtures("inference_on_one_thread")


def reference_fusion(tokens: list[Token], class_row: Tensor, prefix: int, keep: float) -> list[Token]:
    """Figure 2 and equation 3."""
    patches, row = tokens[prefix:], class_row[prefix:]
    top = set(row.topk(math.ceil(keep * len(row))).indices.tolist())
    fused = torch.zeros_like(patches[0].x)
    for i in set(range(len(patches))) - top:
        fused += row[i] * patches[i].x
    return [*tokens[:prefix], *(patches[i] for i in sorted(top)), Token(fused)]


def reference(model: ElasticViT, image: Tensor, keep: float, blocks: tuple[int, ...]) -> Tensor:
    """Logits of one image (3, S, S). `blocks` counts from 1, as the paper does."""

    def first_half(block: Block, tokens: list[Token], index: int) -> list[Token]:
        attention = block_attention(block, tokens)
        tokens = add_attention(block, tokens, attention)
        if index + 1 not in blocks:
            return tokens
        return reference_fusion(tokens, attention.weights[:, 0].mean(0), model.config.prefix, keep)

    return classify(model, tokens_per_block(model, image, first_half)[-1])


@pytest.mark.parametrize("keep", [0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("config", [PLAIN, TWO_PREFIX, REGISTERS], ids=["plain", "two prefix", "registers"])
def test_logits_are_the_papers(config: ViTConfig, keep: float) -> None:
    model, images = build(config), random_images(config)
    expected = [reference(model, image, keep, (4, 7, 10)) for image in images]
    assert_same_logits(model, images, f"evit:{keep}", expected)


def test_the_fused_kernel_ranks_tokens_as_the_explicit_one_does() -> None:
    assert LONG.patches(LONG.image_size) + 1 > EXPLICIT_LENGTH
    model = build(LONG)
    image = random_images(LONG, 1)
    expected = reference(model, image[0], 0.5, (2, 3, 4))
    assert (run(model, image, "evit:0.5").logits[0] - expected).abs().max() < 1e-4


@pytest.mark.parametrize("config", [PLAIN, TWO_PREFIX, REGISTERS, LONG])
def test_keeping_all_tokens_is_exactly_the_identity(config: ViTConfig) -> None:
    model, images = build(config), random_images(config, 2)
    assert torch.equal(run(model, images, "evit:1.0").logits, run(model, images, "none").logits)


def test_a_rate_that_rounds_up_to_all_tokens_fuses_none() -> None:
    model, images = build(PLAIN), random_images(PLAIN, 2)
    result, full = run(model, images, "evit:0.9999"), run(model, images, "none")
    assert torch.equal(result.tokens, full.tokens)
    # Sorting has moved the tokens, so sums round differently.
    assert (result.logits - full.logits).abs().max() < 1e-5


def test_rows_of_a_batch_do_not_influence_each_other() -> None:
    model, images = build(TWO_PREFIX), random_images(TWO_PREFIX, 4)
    together = run(model, images, "evit:0.5").logits
    alone = torch.cat([run(model, image.unsqueeze(0), "evit:0.5").logits for image in images])
    assert (together - alone).abs().max() < 1e-5


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.75])
@pytest.mark.parametrize("config", [PLAIN, TWO_PREFIX, REGISTERS])
def test_source_map_and_counts_account_for_every_patch(config: ViTConfig, keep: float) -> None:
    model = build(config)
    reducer = reduction.create(f"evit:{keep}", UntrainedContext(config))
    tokens: Tokens = model.embed(random_images(config))
    start, after = len(tokens), reducer.after(len(tokens), config.prefix, config.depth)
    for index, block in enumerate(model.blocks):
        tokens = block(tokens, reducer, index)
        assert len(tokens) == after[index]
        assert torch.equal(tokens.counts.sum(1), torch.full((3,), float(start)))
        assert torch.all(tokens.counts[:, : config.prefix] == 1)
        assert tokens.source.min() >= config.prefix
        for counts, source in zip(tokens.counts, tokens.source, strict=True):
            pointed_at = torch.bincount(source, minlength=len(tokens))[config.prefix :]
            assert torch.equal(pointed_at.float(), counts[config.prefix :])
    assert after[-1] < start


def test_kept_tokens_are_those_with_the_most_attention() -> None:
    config = PLAIN
    reducer = reduction.create("evit:0.5", UntrainedContext(config))
    row = torch.rand(2, 37, generator=torch.Generator().manual_seed(5))
    tokens = Tokens.start(torch.zeros(2, 37, config.width), prefix=1)
    assignment = reducer(tokens, Attention(class_row=row), block=3)
    assert assignment.absorbed is not None
    assert assignment.share is not None
    assert assignment.kept.shape == (2, 1 + 18)
    assert torch.all(assignment.kept[:, 0] == 0)
    kept, rest = row.gather(1, assignment.kept[:, 1:]), row.gather(1, assignment.absorbed)
    assert torch.all(kept.amin(1) >= rest.amax(1))
    assert torch.equal(assignment.share, rest.unsqueeze(1))


def test_blocks_that_reduce() -> None:
    def reducing(depth: int) -> list[int]:
        reducer = reduction.create("evit:0.5", UntrainedContext(ViTConfig(depth=depth)))
        return [b + 1 for b in range(depth) if reducer.needs(b) is Needs.CLASS_ROW]

    assert reducing(12) == [4, 7, 10]
    assert reducing(24) == [7, 13, 19]
    assert reducing(4) == [2, 3, 4]


@pytest.mark.parametrize("argument", ["", ":", ":0", ":1.1", ":-1", ":nan", ":half"])
def test_an_argument_that_is_no_keep_rate_is_refused(argument: str) -> None:
    with pytest.raises(BadPlan, match="keep rate"):
        reduction.create(f"evit{argument}", UntrainedContext(PLAIN))


def test_a_model_without_class_token_is_refused() -> None:
    with pytest.raises(BadPlan, match="class token"):
        reduction.create("evit:0.5", UntrainedContext(ViTConfig(class_token=False, pool="avg")))
