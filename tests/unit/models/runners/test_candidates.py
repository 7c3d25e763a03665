"""The candidate plans of a model, and plans from a list."""

import pkgutil
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
from torch import nn

from foveate.core.errors import BadPlan
from foveate.core.plan import Plan
from foveate.models import reduction
from foveate.models.heads.dense import DenseSpec
from foveate.models.layers.config import ViTConfig
from foveate.models.runners.candidates import baselines, candidates, parse_plans, video_candidates
from foveate.models.runners.image import TorchRunner
from foveate.models.vit.flops import flops
from foveate.models.vit.resolve import resolve
from foveate.models.vit.stitch import StitchSpec
from foveate.models.vit.vit import ElasticViT
from foveate.models.weights.family import Family
from tests.support.measuring import CONFIG, quiet, tiny

pytestmark = pytest.mark.usefixtures("one_thread")


REDUCERS = [module.name for module in pkgutil.iter_modules(reduction.__path__)]


def reducer_names(plans: Sequence[Plan]) -> set[str]:
    return {p.reducer.partition(":")[0] for p in plans}


def test_a_classifier_is_tried_with_all_that_it_supports() -> None:
    model, gated = ElasticViT(ViTConfig()), ElasticViT(ViTConfig(), gates=(3, 6, 9))
    full = Plan("vit", 224)
    plain = candidates(model, full, quiet)
    for number in (4, 8, 10):
        model.exit_heads[str(number)] = nn.Identity()
    exiting = candidates(model, full, quiet)
    assert plain[0] == exiting[0] == full
    assert {p.image_size for p in plain} == {288, 256, 224, 192, 160, 112}
    for plans in (plain, [p for p in plain if p.image_size == 112]):
        assert reducer_names(plans) == {*REDUCERS} - {"random", "pooling", "dtop", "expedit"}
    assert {p.heads for p in plain} == {None, 2}
    assert not any(p.exit for p in plain)
    assert {p.depth for p in plain} == {None, 4, 6, 8, 10}
    assert {p.exit for p in exiting} >= {"0.8", "0.9", "entropy:0.1", "patience:1", "patience:2"}
    assert not any(p.exit == "patience:3" for p in exiting), "three heads agree twice at most"
    assert {str(p) for p in plain} >= {
        "vit@224/evit:0.5/fp32",
        "vit@224/tome:8/fp32",
        "vit@112/evit:0.5/fp32",
        "vit@224/ats:197/fp32",
    }
    assert "iared" not in reducer_names(candidates(model, full, TorchRunner(tiny()).check))
    assert "iared" in reducer_names(candidates(gated, full, quiet))


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


def test_a_dense_model_is_tried_with_its_own_reducers() -> None:
    model = ElasticViT(CONFIG, dense=DenseSpec(classes=6, width=8, fine=8, gate=4))
    plans = candidates(model, Plan("tiny", 64), quiet)
    assert {"dtop", "expedit"} <= reducer_names(plans)
    assert any(p.exit and p.exit.startswith("eco:") for p in plans)
    assert any(p.depth and p.reducer.startswith("dtop") for p in plans)


def test_a_runner_offers_its_siblings_stitches_and_baselines() -> None:
    lighter = tiny(1, replace(CONFIG, width=8, depth=2, heads=1), "tinier")
    joints = {StitchSpec("tiny", 2, "tinier", 1): nn.Linear(8, CONFIG.width)}
    plans = TorchRunner(Family(tiny(), (lighter,), joints)).candidates()
    full = Plan("tiny", 64)
    assert plans[0] == full
    assert Plan("tiny", 64, stitch="2") in plans
    assert {p.variant for p in plans} == {"tiny", "tinier"}
    assert {p.reducer.partition(":")[0] for p in plans[-4:]} <= {"random", "pooling"}


def test_a_reducer_of_a_third_party_takes_part_and_a_broken_one_breaks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    module = import_module("foveate.models.reduction.evit")
    source = f"from {module.__name__} import Evit, build as evit\n"
    offer = "def build(argument, context):\n    return evit(argument, context)\n"
    (tmp_path / "kept_half.py").write_text(
        f"{source}{offer}\ndef candidates(context, image_size):\n    return ['0.25', str(image_size / 640)]\n"
    )
    (tmp_path / "says_nothing.py").write_text(source + offer)
    (tmp_path / "fails.py").write_text(f"{offer}\ndef candidates(context, image_size):\n    return 1 / 0\n")
    installed = tmp_path / "kept_half-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: kept-half\nVersion: 1.0\n")
    names = "".join(f"{name} = {name}:build\n" for name in ("kept_half", "says_nothing", "fails", "is_gone"))
    (installed / "entry_points.txt").write_text(f"[foveate.reducers]\n{names}")
    monkeypatch.syspath_prepend(str(tmp_path))
    reduction.catalogue.cache_clear()
    try:
        plans = TorchRunner(tiny()).candidates()
    finally:
        reduction.catalogue.cache_clear()
    theirs = {p.reducer for p in plans if p.reducer.startswith("kept_half")}
    assert not any(p.reducer.startswith(("says", "fails", "is_gone")) for p in plans)
    assert theirs == {"kept_half:0.25", "kept_half:0.1", "kept_half:0.075", "kept_half:0.05"}
    assert caplog.text.count("fails:build") == 1
    assert "offers no plans: ZeroDivisionError" in caplog.text
    assert "offers no plans: ModuleNotFoundError" in caplog.text


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
    plans = candidates(model, Plan("tiny", 64), quiet, {"tinier": ElasticViT(replace(CONFIG, image_size=48))})
    assert Plan("tiny", 64, reducer="diffrate:0.6") in plans
    assert Plan("tinier", 48) in plans
    assert Plan("tinier", 48, reducer="evit:0.5") in plans


def test_a_video_classifier_is_measured_without_glances() -> None:
    """They are dominated by fewer frames with fewer blocks, so that they only take time."""
    full = Plan("vit", 112)
    plans = video_candidates(ElasticViT(ViTConfig()), full, 16, "classify", quiet)
    assert plans[0] == full and len(plans) > 40
    assert {"evit", "tome", "gtp"} <= reducer_names(plans)
    assert {p.exit for p in plans} >= {"0.9", "entropy:0.1", "patience:1"}
    assert {p.depth for p in plans} > {4, 6, 8} and {p.frames for p in plans} > {4, 6, 8, 12}
    assert not any(p.glance for p in plans)


def test_baselines_are_measured_but_are_no_candidates() -> None:
    runner = TorchRunner(tiny())
    compared = baselines(runner.models["tiny"], runner.full, runner.check)
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


@pytest.mark.parametrize(
    "text", ["", " , ", "warp:9", "evit:7", "33", "other@64", "exit:0.9", "evit:0.5/bf16"]
)
def test_a_listed_plan_that_cannot_run_is_refused(text: str) -> None:
    runner = TorchRunner(tiny())
    with pytest.raises(BadPlan):
        parse_plans(text, runner.full, runner.check)
