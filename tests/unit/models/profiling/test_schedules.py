"""The search for a DiffRate schedule, on small models in which the test controls which blocks matter."""

from functools import cache
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from foveate.core.errors import BadPlan
from foveate.models import reduction
from foveate.models.layers.blocks import Block
from foveate.models.layers.config import ViTConfig, gmacs
from foveate.models.layers.reducer import Reducer, Schedule
from foveate.models.profiling.schedules import SearchBatch, SearchProgress, search
from foveate.models.reduction.diffrate import from_schedule, full_gmacs, uniform_schedule
from foveate.models.vit.vit import ElasticViT, ResolvedPlan

G = ViTConfig(image_size=96, width=24, depth=6, heads=2, classes=7)
FULL = full_gmacs(G)
READS = 3
"""The only block, counted from 0, whose attention changes the class token in `one_reader`."""

pytestmark = pytest.mark.usefixtures("inference_on_one_thread")


def build() -> ElasticViT:
    model, generator = ElasticViT(G).eval(), torch.Generator().manual_seed(7)
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        gain = p.ndim == 1 and name.endswith("weight")
        p.copy_(1 + 0.1 * noise if gain else 0.2 * noise)
    return model


def one_reader() -> ElasticViT:
    model = build()
    for index, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        if index != READS:
            block.attn.proj.weight.zero_()
    return model


def search_batches(batches: int = 8) -> list[SearchBatch]:
    generator = torch.Generator().manual_seed(3)
    return [(torch.randn(16, 3, 96, 96, generator=generator), None) for _ in range(batches)]


def logits(model: ElasticViT, images: Tensor, reducer: Reducer) -> Tensor:
    result: Tensor = model(images, ResolvedPlan(reducer, G.depth)).logits
    return result


def divergence(model: ElasticViT, schedule: Schedule, batches: list[SearchBatch]) -> float:
    """Kullback-Leibler divergence of the reduced answers from full's, summed over batches."""
    none, reducer = reduction.create("none", model), from_schedule(schedule, G)
    total = 0.0
    for images, _ in batches:
        full = logits(model, images, none).log_softmax(-1)
        reduced = logits(model, images, reducer).log_softmax(-1)
        total += float((full.exp() * (full - reduced)).sum(-1).mean())
    return total


def cost(schedule: Schedule) -> float:
    return gmacs(G, 96, [merged for _, merged in schedule])


@cache
def learned() -> tuple[Schedule, tuple[SearchProgress, ...]]:
    reports: list[SearchProgress] = []
    schedule = search(one_reader(), search_batches(), 0.7 * FULL, steps=30, report=reports.append)
    return schedule, tuple(reports)


@pytest.mark.parametrize("share", [0.5, 0.65, 0.9])
def test_the_target_is_met_and_token_counts_never_rise(share: float) -> None:
    model = build()
    schedule = search(model, search_batches(4), share * FULL, steps=12, seed=1)
    assert 0.97 * share * FULL < cost(schedule) <= share * FULL
    assert len(schedule) == G.depth
    counts = [37, *(count for kept in schedule for count in kept)]
    assert all(before >= now > 1 for before, now in pairwise(counts))
    # A plan uses the schedule unchanged.
    model.schedules = {f"{share:g}": schedule}
    after = reduction.create(f"diffrate:{share}", model).after(37, 1, G.depth)
    assert after == tuple(merged for _, merged in schedule)


def test_tokens_are_kept_until_the_last_block_that_reads_them() -> None:
    schedule, _ = learned()
    even = uniform_schedule(G, 0.7)
    # Block READS attends to the tokens that the block before it kept. No later block attends to any.
    assert schedule[READS - 1][1] > even[READS - 1][1] + 3
    assert schedule[-1][1] < even[-1][1]
    model, others = one_reader(), search_batches(12)[8:]
    assert divergence(model, schedule, others) < 0.5 * divergence(model, even, others)


def test_the_distance_never_rises_during_the_search() -> None:
    _, reports = learned()
    assert [(p.step, p.steps) for p in reports] == [(step, 30) for step in range(1, 31)]
    assert all(now.distance <= before.distance for before, now in pairwise(reports))
    assert reports[-1].distance < reports[0].distance


def test_the_seed_makes_the_search_repeatable() -> None:
    model, state = one_reader(), torch.get_rng_state()
    again = search(model, search_batches(), 0.7 * FULL, steps=30)
    assert again == learned()[0]
    assert torch.equal(torch.get_rng_state(), state)
    other = search(model, search_batches(), 0.7 * FULL, steps=30, seed=5)
    assert divergence(model, other, search_batches()) < divergence(
        model, uniform_schedule(G, 0.7), search_batches()
    )


def test_the_search_does_not_change_the_model() -> None:
    model = build()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    search(model, search_batches(2), 0.6 * FULL, steps=3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training
    assert model.schedules == {}


def test_known_classes_are_the_target() -> None:
    model, generator = one_reader(), torch.Generator().manual_seed(9)
    known: list[SearchBatch] = [
        (images, torch.randint(G.classes, (len(images),), generator=generator))
        for images, _ in search_batches()
    ]
    reports: list[SearchProgress] = []
    schedule = search(model, known, 0.7 * FULL, steps=12, report=reports.append)
    overlaps = [
        logits(model, images, from_schedule(schedule, G)).softmax(-1).gather(1, classes.unsqueeze(1)).sqrt()
        for images, classes in known
        if classes is not None
    ]
    assert reports[-1].distance == pytest.approx(float((1 - torch.cat(overlaps)).sqrt().mean()), rel=1e-4)


def test_without_steps_or_improvement_the_schedule_stays_uniform() -> None:
    assert search(build(), search_batches(1), 0.6 * FULL, steps=0) == uniform_schedule(G, 0.6)
    constant = build()
    assert isinstance(constant.head, nn.Linear)
    constant.head.weight.zero_()  # every schedule gives the same answers
    assert search(constant, search_batches(2), 0.6 * FULL, steps=10) == uniform_schedule(G, 0.6)


def test_a_target_out_of_reach_is_refused_and_one_above_full_keeps_all_tokens() -> None:
    with pytest.raises(BadPlan, match="full compute"):
        search(build(), search_batches(1), 0.01 * FULL, steps=1)
    assert search(build(), search_batches(1), 2 * FULL, steps=2) == ((37, 37),) * G.depth
