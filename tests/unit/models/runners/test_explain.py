"""What an explanation tells, against walks by hand and for every reducer; and the picture of it."""

import math
import pkgutil
from dataclasses import replace
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from foveate.core.outcome import Explanation, ReductionStage
from foveate.models import reduction
from foveate.models.heads.gates import Gate
from foveate.models.layers.blocks import Block
from foveate.models.layers.config import ReductionPoint, ViTConfig
from foveate.models.layers.reducer import Attention, Needs, Reducer
from foveate.models.layers.tokens import Assignment, Tokens
from foveate.models.runners.explain import explain, groups
from foveate.models.vit.vit import ElasticViT, ResolvedPlan
from tests.support.dense_heads import dense_head

G = ViTConfig(image_size=96, width=24, depth=6, heads=2, classes=5)
PATCHES, REDUCES = 36, (2, 4, 5)
"""Blocks in which evit reduces at this depth, counted from 1."""
MODULES = [module.name for module in pkgutil.iter_modules(reduction.__path__)]
SPECS = [
    name if argument is None else f"{name}:{argument}"
    for name in MODULES
    for argument in import_module(f"{reduction.__name__}.{name}").EXAMPLES
]

pytestmark = pytest.mark.usefixtures("inference_on_one_thread")


def tiny() -> ElasticViT:
    """Weights far enough from zero that attention tells tokens apart."""
    model, generator = ElasticViT(G).eval(), torch.Generator().manual_seed(7)
    model.gates["3"] = Gate(G.width)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        gain = parameter.ndim == 1 and name.endswith("weight")
        parameter.copy_(1 + 0.1 * noise if gain else 0.2 * noise)
    model.dense = dense_head(G)
    return model


def pictures(batch: int = 4) -> Tensor:
    return torch.randn(batch, 3, 96, 96, generator=torch.Generator().manual_seed(3))


def steps(model: ElasticViT, text: str, depth: int = G.depth, **more: Any) -> ResolvedPlan:
    return ResolvedPlan(reduction.create(text, model), depth, **more)


def evit_by_hand(model: ElasticViT, image: Tensor, keep: float) -> list[ReductionStage]:
    """EViT on one picture with sets of patches, beside the trunk and its token state."""
    x = model.embed(image.unsqueeze(0)).x[0]
    members = [{patch} for patch in range(PATCHES)]
    stages = []
    for number, block in enumerate(model.blocks, start=1):
        assert isinstance(block, Block)
        q, k, v = block.attn.qkv(block.norm1(x)).view(len(x), 3, G.heads, -1).permute(1, 2, 0, 3)
        weights = (q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])).softmax(-1)
        x = x + block.attn.proj((weights @ v).transpose(0, 1).flatten(1))
        if number in REDUCES:
            seen = weights[:, 0, 1:].mean(0)
            order = seen.argsort(descending=True).tolist()
            best = order[: math.ceil(keep * len(order))]
            rest = order[len(best) :]
            fused = sum(seen[n] * x[1 + n] for n in rest)
            x = torch.stack([x[0], *(x[1 + n] for n in best), fused])
            members = [*(members[n] for n in best), set().union(*(members[n] for n in rest))]
            first = {patch: min(group) for group in members for patch in group}
            stages.append(ReductionStage(number, len(x), tuple(first[patch] for patch in range(PATCHES))))
        x = x + block.mlp(block.norm2(x))
    return stages


@pytest.mark.parametrize("keep", [0.9, 0.5, 0.3])
def test_under_evit_it_agrees_with_a_walk_by_hand(keep: float) -> None:
    model, images = tiny(), pictures()
    found = explain(model, images, steps(model, f"evit:{keep}"))
    assert [list(e.stages) for e in found] == [evit_by_hand(model, image, keep) for image in images]
    assert [[stage.block for stage in e.stages] for e in found] == [[*REDUCES]] * 4
    assert len({e.stages for e in found}) == 4, "the pictures are to differ"
    assert all((e.grid, e.exit_layer) == ((6, 6), G.depth) for e in found)


@pytest.mark.parametrize("text", SPECS)
def test_for_every_reducer_stages_are_sound_and_count_what_the_trunk_counts(text: str) -> None:
    model, images = tiny(), pictures(3)
    plan = steps(model, text)
    out = model(images, plan)
    foretold = plan.reducer.after(1 + PATCHES, 1, G.depth)
    for row, explanation in enumerate(explain(model, images, plan)):
        counts = dict.fromkeys(range(G.depth + 1), 1 + PATCHES)
        for stage in explanation.stages:
            counts |= dict.fromkeys(range(stage.block, G.depth + 1), stage.tokens)
        after = foretold if out.after is None else out.after[row].tolist()
        assert list(counts.values())[1:] == list(after)
        assert_sound(explanation)
    assert explain(model, images[1:2], plan)[0] == explain(model, images, plan)[1]


def assert_sound(explanation: Explanation) -> None:
    """Groups are named by their first patch, are never split, and never come back once dropped."""
    before = tuple(range(PATCHES))
    for stage in explanation.stages:
        alive = [patch for patch in range(PATCHES) if stage.groups[patch] >= 0]
        assert all(stage.groups[patch] <= patch for patch in alive)
        assert all(stage.groups[stage.groups[patch]] == stage.groups[patch] for patch in alive)
        assert all(stage.groups[patch] == -1 for patch in range(PATCHES) if before[patch] < 0)
        for group in set(before) - {-1}:
            assert len({stage.groups[patch] for patch in range(PATCHES) if before[patch] == group}) == 1
        assert stage.tokens >= 1 + len(set(stage.groups) - {-1})
        before = stage.groups


class Positive(Reducer):
    """Before the first block, drops the patches whose first feature is below zero; pads the rows."""

    point, adaptive = ReductionPoint.BEFORE, True

    def needs(self, block: int) -> Needs | None:
        return Needs.NOTHING if block == 0 else None

    def after(self, tokens: int, prefix: int, depth: int) -> tuple[int, ...]:
        return (tokens,) * depth

    def __call__(self, tokens: Tokens, attention: Attention, block: int) -> Assignment:
        stays = tokens.x[:, :, 0] > 0
        stays[:, 0] = True
        most = int(stays.sum(1).max())
        order = stays.int().argsort(dim=1, descending=True, stable=True)[:, :most]
        real = stays.gather(1, order)
        return Assignment(order * real, counts=real.float())


def test_padding_and_reducers_that_act_before_their_block_come_out_right() -> None:
    model, images = tiny(), pictures()
    stays = model.embed(images).x[:, 1:, 0] > 0
    assert len(set(stays.sum(1).tolist())) > 1, "the rows are to be of different lengths"
    for row, explanation in enumerate(explain(model, images, ResolvedPlan(Positive(), G.depth))):
        (stage,) = explanation.stages
        assert stage.block == 1
        assert stage.tokens == 1 + int(stays[row].sum())
        assert stage.groups == tuple(n if stay else -1 for n, stay in enumerate(stays[row].tolist()))
        assert stage.patch_states == tuple("kept" if stay else "dropped" for stay in stays[row].tolist())


class LastIntoFirst(Reducer):
    """Ahead of the third and of the fourth block, merges the last patch token into the first."""

    point = ReductionPoint.AHEAD

    def needs(self, block: int) -> Needs | None:
        return Needs.FULL if block in (2, 3) else None

    def after(self, tokens: int, prefix: int, depth: int) -> tuple[int, ...]:
        return tuple(tokens - max(0, min(block - 1, 2)) for block in range(depth))

    def __call__(self, tokens: Tokens, attention: Attention, block: int) -> Assignment:
        batch, last = len(tokens.x), len(tokens) - 1
        kept = torch.arange(last).expand(batch, -1)
        share = torch.zeros(batch, last, 1).index_fill(1, torch.tensor(1), 1.0)
        return Assignment(kept, torch.full((batch, 1), last), share, torch.ones(batch, 1, dtype=torch.int64))


def test_reducers_that_act_ahead_of_their_block_come_out_right() -> None:
    model = tiny()
    for explanation in explain(model, pictures(), ResolvedPlan(LastIntoFirst(), G.depth)):
        first, second = explanation.stages
        assert (first.block, first.tokens, second.block, second.tokens) == (3, 36, 4, 35)
        assert first.groups == (*range(35), 0)
        assert second.groups == (*range(34), 0, 0)
        assert explanation.patch_states == ("merged", *["kept"] * 33, "merged", "merged")


class Half(nn.Module):
    """An exit head that is sure of the pictures whose second patch it likes."""

    def forward(self, tokens: Tokens) -> Tensor:
        return tokens.x[:, 2, :5]


def test_stages_end_where_the_picture_leaves() -> None:
    model, images = tiny(), pictures(8)
    model.exit_heads["3"] = Half()
    plan = steps(model, "evit:0.5", exit_rule=lambda answers: answers[-1][:, 0] > 0)
    layers = model(images, plan).exit_layer.tolist()
    assert set(layers) == {3, G.depth}
    whole = explain(model, images, steps(model, "evit:0.5"))
    for found, full, layer in zip(explain(model, images, plan), whole, layers, strict=True):
        assert found.exit_layer == layer
        assert found.stages == tuple(stage for stage in full.stages if stage.block <= layer)


def test_stages_end_at_a_depth_cap() -> None:
    model, images = tiny(), pictures()
    capped, whole = (explain(model, images, steps(model, "evit:0.5", depth)) for depth in (4, G.depth))
    assert [found.stages for found in capped] == [full.stages[:2] for full in whole]
    assert {found.exit_layer for found in capped} == {4}


def test_where_nothing_is_reduced_every_patch_is_kept() -> None:
    model = tiny()
    for explanation in explain(model, pictures(), steps(model, "none")):
        assert explanation == Explanation((6, 6), (), G.depth)
        assert explanation.patch_states == ("kept",) * PATCHES
    small = torch.randn(1, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    assert explain(model, small, steps(model, "evit:0.5"))[0].grid == (3, 3)


def test_keeping_account_changes_nothing() -> None:
    model, images = tiny(), pictures()
    plan = steps(model, "evit:0.5")
    seen: list[tuple[Tensor, int, Tokens]] = []
    recorded = model.encode(model.embed(images), plan, lambda *state: seen.append(state))
    assert torch.equal(recorded.logits, model(images, plan).logits)
    assert [block for _, block, _ in seen] == list(range(1, G.depth + 1))


def test_groups_are_named_by_their_first_patch_with_and_without_a_class_token() -> None:
    for prefix in (0, 1, 2):
        tokens = Tokens.start(torch.zeros(2, prefix + 5, 3), prefix)
        source = torch.tensor([[1, 0, -1, 1, 0], [-1, -1, 4, 2, 4]])
        merged = replace(tokens, source=torch.where(source < 0, -1, source + prefix))
        assert groups(tokens).tolist() == [[0, 1, 2, 3, 4]] * 2
        assert groups(merged).tolist() == [[0, 1, -1, 0, 1], [-1, -1, 2, 3, 2]]
