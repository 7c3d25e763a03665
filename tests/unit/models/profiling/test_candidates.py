"""The candidate plans of a model, and plans from a list."""

from dataclasses import replace

import pytest
from torch import nn

from foveate.core.errors import BadPlan
from foveate.core.plan import Plan
from foveate.models.layers.config import ViTConfig
from foveate.models.profiling.candidates import baselines, candidates, parse_plans, video_candidates
from foveate.models.runners.image import TorchRunner
from foveate.models.vit.flops import flops
from foveate.models.vit.resolve import resolve
from foveate.models.vit.vit import ElasticViT
from tests.support.measuring import CONFIG, quiet, tiny

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_model_has_twenty_to_forty_candidates() -> None:
    model = ElasticViT(ViTConfig())
    full = Plan("vit", 224)
    plain = candidates(model, full, quiet)
    for number in (4, 8, 10):
        model.exit_heads[str(number)] = nn.Identity()
    exits = candidates(model, full, quiet)
    assert plain[0] == exits[0] == full
    assert 20 <= len(plain) < len(exits) <= 40
    assert {p.image_size for p in plain} == {224, 160, 112, 256, 288}
    assert not any(p.exit for p in plain)
    assert {p.exit for p in exits} >= {"0.8", "0.9", "0.95"}
    assert {str(p) for p in plain} >= {
        "vit@224/evit:0.5/fp32",
        "vit@224/tome:8/fp32",
        "vit@112/evit:0.5/fp32",
    }


def test_larger_sizes_are_candidates_where_a_reducer_pays_for_them() -> None:
    """Plans that need more compute than full would never become rungs."""
    model, full = ElasticViT(ViTConfig()), Plan("vit", 224)
    larger = [p for p in candidates(model, full, quiet) if p.image_size > 224]
    limit = gflops(model, full)
    assert larger
    assert all(gflops(model, p) < limit for p in larger)
    assert not any(p.reducer == "none" for p in larger)


def gflops(model: ElasticViT, plan: Plan) -> float:
    resolved = resolve(model, plan)
    return flops(model, plan.image_size, resolved, resolved.depth)


def test_plans_that_the_model_cannot_run_are_left_out() -> None:
    runner = TorchRunner(tiny(config=replace(CONFIG, class_token=False, pool="avg")))
    plans = candidates(runner.models["tiny"], runner.full, runner.check)
    assert plans[0] == runner.full
    assert not any(p.reducer.startswith("evit") for p in plans)
    for chosen in plans:
        runner.check(chosen)


def test_schedules_and_siblings_are_candidates() -> None:
    model = ElasticViT(CONFIG)
    model.schedules = {"0.6": ((9, 9),) * 4}
    plans = candidates(model, Plan("tiny", 64), quiet, [Plan("tinier", 48)])
    assert Plan("tiny", 64, reducer="diffrate:0.6") in plans
    assert Plan("tinier", 48) in plans
    assert Plan("tinier", 48, reducer="evit:0.5") in plans


def test_a_video_classifier_is_measured_without_glances() -> None:
    """They are dominated by fewer frames with fewer blocks, so that they only take time."""
    full = Plan("vit", 112)
    plans = video_candidates(full, 16, "classify", quiet)
    assert plans[0] == full and len(plans) > 40
    assert {p.depth for p in plans} > {4, 6, 8} and {p.frames for p in plans} > {4, 6, 8, 12}
    assert not any(p.glance for p in plans)


def test_baselines_are_measured_but_are_no_candidates() -> None:
    runner = TorchRunner(tiny())
    compared = baselines(runner.full, runner.check)
    assert {p.reducer.partition(":")[0] for p in compared} == {"random", "pooling"}
    assert len({p.reducer for p in compared}) >= 6
    served = candidates(runner.models["tiny"], runner.full, runner.check)
    assert not set(served) & set(compared)
    assert not any(p.reducer.startswith(("random", "pooling")) for p in served)


def test_a_list_of_plans_may_contain_image_sizes() -> None:
    runner = TorchRunner(tiny())
    listed = parse_plans("evit:.5, 32,32/evit:0.7,full,evit:0.5,", runner.full, runner.check)
    texts = [chosen.relative_to(runner.full) for chosen in listed]
    assert texts == ["full", "evit:0.5", "tiny@32", "tiny@32/evit:0.7"]


@pytest.mark.parametrize("text", ["warp:9", "evit:7", "33", "other@64", "exit:0.9", "evit:0.5/bf16"])
def test_a_listed_plan_that_cannot_run_is_refused(text: str) -> None:
    runner = TorchRunner(tiny())
    with pytest.raises(BadPlan):
        parse_plans(text, runner.full, runner.check)
