"""Cards of loaded models: labels, ladders and digests."""

from dataclasses import replace

import pytest
import torch

from foveate.core.outcome import Result
from foveate.core.plan import Plan
from foveate.models.layers.config import ViTConfig
from foveate.models.runners.describe import STANDARD_RUNGS, describe, profiled_ladder, standard_ladder
from foveate.models.runners.image import TorchRunner
from foveate.models.vit.vit import ElasticViT
from foveate.models.weights import hub
from tests.support.clip_heads import clip_checkpoint
from tests.support.dense_heads import dense_checkpoint
from tests.support.measuring import plan, tiny, written
from tests.support.torchvision_ops import import_timm

pytestmark = pytest.mark.usefixtures("one_thread")
FULL = Plan("tiny", 64)


def test_card_repeats_the_checkpoint() -> None:
    checkpoint = replace(tiny(), description="Small.", licence="MIT", source="here", labels=tuple("abcde"))
    card = describe(checkpoint, FULL, (), frames=3)
    assert (card.name, card.description, card.licence, card.source) == ("tiny", "Small.", "MIT", "here")
    assert (card.full, card.labels, card.task, card.frames) == (FULL, tuple("abcde"), "classify", 3)
    assert card.parameters == sum(p.numel() for p in checkpoint.model.parameters())


def test_unnamed_classes_are_numbered() -> None:
    assert describe(tiny(), FULL, ()).labels == tuple(f"class {i}" for i in range(5))
    without_background = describe(replace(dense_checkpoint(), labels=()), FULL, ())
    assert len(without_background.labels) == 4
    motions = describe(replace(clip_checkpoint(), labels=()), FULL, ())
    assert len(motions.labels) == 3


def test_digests_change_with_what_answers_depend_on() -> None:
    before = describe(tiny(), FULL, ())
    assert before == describe(tiny(), FULL, ())
    other_mean = describe(replace(tiny(), mean=(0.1, 0.2, 0.3)), FULL, ())
    depends_on_more = describe(tiny(), FULL, (), depends_on=("content rungs",))
    other_weights = describe(tiny(seed=1), FULL, ())
    cards = (before, other_mean, depends_on_more, other_weights)
    assert len({card.weights for card in cards}) == 4
    # The features of an image depend on its preparation too.
    assert before.trunk == depends_on_more.trunk
    assert len({card.trunk for card in (before, other_mean, other_weights)}) == 3


def test_standard_ladder_is_sorted_by_cost_and_unmeasured_below_full() -> None:
    ladder = standard_ladder(tiny().model, FULL)
    # Of 16 patches evit:0.9 keeps 16, one of them fused, which costs more than it saves.
    assert [rung.plan for rung in ladder] == [*(Plan.parse(t, FULL) for t in STANDARD_RUNGS[:-1]), FULL]
    costs = [rung.gflops for rung in ladder]
    assert costs == sorted(costs)
    assert [rung.quality for rung in ladder] == [None] * 3 + [1.0]
    assert ladder[-1].tokens == 17 > ladder[0].tokens


def test_standard_ladder_without_a_class_token_is_full_alone() -> None:
    config = ViTConfig(image_size=64, width=24, depth=2, heads=2, classes=5, class_token=False, pool="avg")
    with torch.device("meta"):
        model = ElasticViT(config)
    assert [rung.plan for rung in standard_ladder(model, FULL)] == [FULL]


def test_profiled_ladder_has_the_measured_values() -> None:
    profile = written(plan("full", 1.0, 2.0, 0.01, rung=True), plan("evit:0.6", 0.9, 1.2, rung=True))
    ladder = profiled_ladder(profile, FULL)
    assert [(rung.plan, rung.quality, rung.gflops) for rung in ladder] == [
        (Plan.parse(m.plan, FULL), m.quality, m.gflops) for m in profile.ladder
    ]
    assert {rung.plan.relative_to(FULL): rung.latency_s for rung in ladder} == {
        "evit:0.6": None,
        "full": {1: 99.0, 8: 0.08},
    }


def test_timm_model_without_classes_makes_embeddings() -> None:
    import_timm()
    checkpoint = hub.load("random:vit_small_patch14_dinov2", image_size=28)
    runner = TorchRunner(checkpoint)
    assert (runner.card.task, runner.card.labels) == ("embed", ())
    (result,) = runner.run(runner.blank_batch(1), runner.full)
    assert isinstance(result, Result) and result.scores.shape == (384,)
