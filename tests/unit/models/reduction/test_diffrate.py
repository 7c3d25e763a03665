"""DiffRate in the trunk against a reference written from the paper, one image, head and token at a time."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from foveate.core.errors import BadPlan
from foveate.models import reduction
from foveate.models.layers.blocks import Block
from foveate.models.layers.config import ViTConfig, gmacs
from foveate.models.layers.reducer import Needs, Schedule, UntrainedContext
from foveate.models.layers.tokens import Tokens
from foveate.models.reduction.diffrate import fit_schedule, full_gmacs, prune_and_merge, uniform_schedule
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
    random_images,
    run,
    tokens_per_block,
)

CONFIGS = {"plain": PLAIN, "two prefix": TWO_PREFIX, "registers": REGISTERS}
DEIT_T = ViTConfig()
SMALL, BASE = ViTConfig(width=384, heads=6), ViTConfig(width=768, heads=12)
MAE_B = ViTConfig(width=768, heads=12, pool="avg", fc_norm=True)
MAE_L = ViTConfig(width=1024, depth=24, heads=16, pool="avg", fc_norm=True)
MAE_H = ViTConfig(width=1280, depth=32, heads=16, patch_size=14, pool="avg", fc_norm=True)
SEARCHED: Schedule = ((37, 34), (33, 30), (22, 22), (22, 9), (9, 8), (3, 2))
"""Blocks that only prune, only merge, and do both."""
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())

pytestmark = pytest.mark.usefixtures("inference_on_one_thread")


def build(config: ViTConfig) -> ElasticViT:
    model, extra = references.build(config), config.prefix - 1
    model.schedules = {"2.5": tuple((prune + extra, merge + extra) for prune, merge in SEARCHED)}
    return model


def reference_compression(
    tokens: list[Token], row: list[float], prefix: int, prune: int, merge: int
) -> list[Token]:
    """First `prune`, then `merge` tokens remain, prefix included."""
    order = sorted(range(prefix, len(tokens)), key=lambda i: -row[i])
    order = order[: prune - prefix]
    kept, merged = order[: merge - prefix], order[merge - prefix :]
    members = {i: [tokens[i].x] for i in kept}
    sizes = {i: tokens[i].size for i in kept}
    for i in merged:
        similarity = {j: float(F.cosine_similarity(tokens[i].x, tokens[j].x, dim=0)) for j in kept}
        best = max(kept, key=lambda j: similarity[j])
        members[best].append(tokens[i].x)
        sizes[best] += max(similarity[best], 0.0) * tokens[i].size
    return tokens[:prefix] + [Token(torch.stack(members[i]).mean(0), sizes[i]) for i in kept]


def reference(model: ElasticViT, image: Tensor, schedule: Schedule) -> Tensor:
    """Logits of one image (3, S, S)."""

    def first_half(block: Block, tokens: list[Token], index: int) -> list[Token]:
        prune, merge = schedule[index]
        attention = block_attention(block, tokens)
        tokens = add_attention(block, tokens, attention)
        if merge >= len(tokens):
            return tokens
        row: list[float] = attention.weights[:, 0].mean(0).tolist()
        return reference_compression(tokens, row, model.config.prefix, prune, merge)

    assert len(schedule) == len(model.blocks)
    return classify(model, tokens_per_block(model, image, first_half)[-1])


@every_config
@pytest.mark.parametrize("name", ["2.5", "0.8", "0.4"])
def test_logits_are_the_papers(config: ViTConfig, name: str) -> None:
    model, images = build(config), random_images(config)
    schedule = model.schedules[name] if name in model.schedules else uniform_schedule(config, float(name))
    expected = [reference(model, image, schedule) for image in images]
    assert run(model, images, f"diffrate:{name}").tokens.tolist() == [schedule[-1][1]] * 3
    assert_same_logits(model, images, f"diffrate:{name}", expected)


@pytest.mark.parametrize("config", [PLAIN, TWO_PREFIX, REGISTERS, SMALL])
def test_a_share_of_one_is_the_identity(config: ViTConfig) -> None:
    reducer = reduction.create("diffrate:1", UntrainedContext(config))
    assert [reducer.needs(block) for block in range(config.depth)] == [None] * config.depth
    start = config.patches(config.image_size) + config.prefix
    assert reducer.after(start, config.prefix, config.depth) == (start,) * config.depth


def test_a_share_of_one_gives_exactly_the_same_logits() -> None:
    model, images = build(PLAIN), random_images(PLAIN, 2)
    assert torch.equal(run(model, images, "diffrate:1").logits, run(model, images, "none").logits)


def test_merging_takes_plain_means_and_weights_counts_by_similarity() -> None:
    # Tokens 1 and 2 stay; 3 and 4 are similar to 1, 5 is similar to neither, and 6 is pruned.
    x = torch.tensor([[9.0, 9], [1, 0], [0, 1], [2, 0], [3, 3], [-1, -1], [7, 7]]).unsqueeze(0)
    tokens = Tokens.start(x, prefix=1)
    importance = torch.tensor([[0.6, 0.5, 0.4, 0.3, 0.2, 0.1]])
    tokens = tokens.apply(prune_and_merge(tokens, importance, prune=5, merge=2))
    half = math.sqrt(0.5)
    assert tokens.source.tolist() == [[1, 2, 1, 1, 1, -1]]
    assert tokens.x[0].tolist() == [[9, 9], [pytest.approx(5 / 4), pytest.approx(0.5)], [0, 1]]
    assert tokens.counts[0].tolist() == [1, pytest.approx(1 + 1 + half), 1]
    # A merged token has its count from now on.
    again = tokens.apply(prune_and_merge(tokens, torch.tensor([[0.1, 0.2]]), prune=2, merge=1))
    similarity = float(F.cosine_similarity(tokens.x[0, 1], tokens.x[0, 2], dim=0))
    assert again.counts[0].tolist() == [1, pytest.approx(1 + similarity * (2 + half))]
    assert again.origin.tolist() == [[0, 2]]


def test_attention_is_needed_only_where_the_schedule_falls() -> None:
    schedule: Schedule = ((37, 37), (30, 30), (30, 30), (37, 35), (20, 12), (12, 12))
    context = UntrainedContext(PLAIN, schedules={"0.5": schedule})
    reducer = reduction.create("diffrate:0.5", context)
    needs = [reducer.needs(block) for block in range(6)]
    assert needs == [None, Needs.CLASS_ROW, None, None, Needs.CLASS_ROW, None]
    assert reducer.after(37, 1, 6) == (37, 30, 30, 30, 12, 12)


@pytest.mark.parametrize(
    ("config", "name", "published"),
    [
        *((SMALL, name, float(name)) for name in ("2.3", "2.5", "2.7", "2.9", "3.1")),
        *((BASE, name, float(name)) for name in ("8.7", "10.0", "10.4", "11.5", "12.5")),
        *((MAE_B, name, float(name)) for name in ("8.7", "10", "10.4", "11.5")),
        *((MAE_L, name, float(name)) for name in ("31", "34.7", "38.5", "42.3", "46.1")),
        *((MAE_H, name, float(name)) for name in ("83.7", "93.2", "103.4", "124.5")),
        *((DEIT_T, name, float(name)) for name in ("0.8", "0.9", "1.0")),
    ],
)
def test_published_schedules_cost_what_their_name_says(
    config: ViTConfig, name: str, published: float
) -> None:
    start = config.patches(224) + 1
    after = reduction.create(f"diffrate:{name}G", UntrainedContext(config)).after(start, 1, config.depth)
    assert gmacs(config, 224, after) == pytest.approx(published, rel=0.02)


@pytest.mark.parametrize(
    ("config", "name", "printed"),
    [
        (SMALL, "2.9G", 2.905),
        (BASE, "11.5G", 11.517),
        (MAE_B, "11.5G", 11.517),
        (MAE_L, "42.3G", 42.290),
        (MAE_H, "103.4G", 103.337),
        # The cheapest two schedules for DeiT-T miss their target in the authors' file.
        (DEIT_T, "0.6G", 0.655),
        (DEIT_T, "0.7G", 0.726),
    ],
)
def test_published_schedules_cost_what_the_authors_evaluation_prints(
    config: ViTConfig, name: str, printed: float
) -> None:
    start = config.patches(224) + 1
    after = reduction.create(f"diffrate:{name}", UntrainedContext(config)).after(start, 1, config.depth)
    assert gmacs(config, 224, after) == pytest.approx(printed, rel=3e-4 if config != DEIT_T else 1e-3)


def test_mae_models_have_schedules_of_their_own() -> None:
    mae, deit = (
        reduction.create("diffrate:8.7G", UntrainedContext(config)).after(197, 1, 12)
        for config in (MAE_B, BASE)
    )
    assert (mae[-1], deit[-1]) == (23, 3)
    with pytest.raises(BadPlan, match=r"it has 8\.7G, 10G, 10\.4G, 11\.5G; a number"):
        reduction.create("diffrate:12.5G", UntrainedContext(MAE_B))
    with pytest.raises(BadPlan, match="it has none"):
        reduction.create("diffrate:42.3G", UntrainedContext(replace(MAE_L, pool="token", fc_norm=False)))


def test_a_share_and_gflops_have_two_spellings() -> None:
    context = UntrainedContext(DEIT_T)
    share, published = (
        reduction.create(f"diffrate:{name}", context).after(197, 1, 12) for name in ("0.6", "0.6G")
    )
    assert gmacs(DEIT_T, 224, share) == pytest.approx(0.6 * full_gmacs(DEIT_T), rel=0.02)
    assert published == (197, 187, 167, 139, 114, 90, 76, 66, 57, 45, 37, 3)
    assert reduction.create("diffrate:1", context).after(197, 1, 12) == (197,) * 12
    assert reduction.create("diffrate:1G", context).after(197, 1, 12)[-1] == 21
    # A number above 1 can only be GFLOPs.
    small = UntrainedContext(SMALL)
    assert reduction.create("diffrate:2.9", small) == reduction.create("diffrate:2.9G", small)
    with pytest.raises(
        BadPlan, match=r"no DiffRate schedule for 0\.5 GFLOPs; .* a number up to 1 is a share"
    ):
        reduction.create("diffrate:0.5G", context)


def test_published_schedules_serve_only_models_of_that_shape() -> None:
    distilled = ViTConfig(width=384, heads=6, distilled=True)
    assert reduction.create("diffrate:2.9", UntrainedContext(distilled)).after(198, 2, 12)[-1] == 4
    for other in (
        ViTConfig(width=256, heads=4),
        ViTConfig(width=384, heads=6, depth=10),
        ViTConfig(width=384, heads=6, image_size=384),
    ):
        with pytest.raises(BadPlan, match=r"no DiffRate schedule for 2\.9 GFLOPs; it has none"):
            reduction.create("diffrate:2.9", UntrainedContext(other))


def test_a_schedule_searched_for_the_model_comes_first() -> None:
    own: Schedule = ((190, 180),) * 12
    context = UntrainedContext(SMALL, schedules={"2.9": own, "0.5": own})
    for name in ("2.9", "2.90", "2.9G", "2.90G", "0.5", ".5"):
        assert reduction.create(f"diffrate:{name}", context).after(197, 1, 12) == (180,) * 12
    with pytest.raises(BadPlan, match=r"it has 2\.3G, 2\.5G, 2\.7G, 2\.9G, 3\.1G, 0\.5; a number up to 1"):
        reduction.create("diffrate:3.3", context)


def test_another_image_size_scales_the_counts() -> None:
    reducer = reduction.create("diffrate:2.9", UntrainedContext(SMALL))
    after = reducer.after(1 + 49, 1, 12)
    assert after == tuple(
        1 + math.ceil((count - 1) * 49 / 196)
        for count in (197, 194, 176, 156, 141, 133, 121, 107, 88, 64, 56, 3)
    )
    assert reducer.after(2, 1, 12) == (2,) * 12


@pytest.mark.parametrize("share", [0.1, 0.35, 0.5, 0.85, 0.99])
@pytest.mark.parametrize("config", [SMALL, BASE, ViTConfig(width=192, heads=3, distilled=True)])
def test_a_share_costs_that_share(config: ViTConfig, share: float) -> None:
    schedule, full = uniform_schedule(config, share), full_gmacs(config)
    cost = gmacs(config, 224, [merged for _, merged in schedule])
    assert 0.985 * share * full < cost <= share * full
    kept = [config.patches(224), *(count - config.prefix for counts in schedule for count in counts)]
    fractions = [now / before for before, now in pairwise(kept) if now > 20]
    assert max(fractions) - min(fractions) < 0.06


def test_rates_set_the_blocks_at_which_tokens_go() -> None:
    target = 0.5 * full_gmacs(SMALL)
    early, late = (
        fit_schedule(SMALL, [3.0] * 8 + [1.0] * 16, target),
        fit_schedule(SMALL, [1.0] * 16 + [3.0] * 8, target),
    )
    assert early[3][1] < uniform_schedule(SMALL, 0.5)[3][1] < late[3][1]
    assert early[-1][1] > uniform_schedule(SMALL, 0.5)[-1][1] > late[-1][1]
    assert all(
        prune == before for (_, before), (prune, _) in pairwise(fit_schedule(SMALL, [1e-9, 1] * 12, target))
    )


def test_a_share_below_one_patch_throughout_is_refused() -> None:
    with pytest.raises(BadPlan, match=r"below 0\.\d+ of its full compute"):
        reduction.create("diffrate:0.01", UntrainedContext(SMALL))
    assert uniform_schedule(SMALL, 0.055)[-1] == (2, 2)


def test_a_schedule_for_other_blocks_is_refused() -> None:
    with pytest.raises(BadPlan, match="has 6 blocks, this model 12"):
        reduction.create("diffrate:2.9", UntrainedContext(SMALL, schedules={"2.9": SEARCHED}))


@pytest.mark.parametrize("argument", ["", ":", ":0", ":-1", ":nan", ":half", ":0.6g", ":G", ":" + "9" * 400])
def test_a_name_that_is_no_number_is_refused(argument: str) -> None:
    with pytest.raises(BadPlan, match="share of compute"):
        reduction.create(f"diffrate{argument}", UntrainedContext(PLAIN))


def test_a_model_without_class_token_is_refused() -> None:
    with pytest.raises(BadPlan, match="class token"):
        reduction.create("diffrate:0.5", UntrainedContext(ViTConfig(class_token=False, pool="avg")))
