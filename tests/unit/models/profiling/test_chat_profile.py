"""Profiles of vision-language models: quality by kind, the ladder, resuming and the budget."""

from dataclasses import replace
from pathlib import Path

import pytest

from foveate.core.plan import Plan
from foveate.core.profile import Profile
from foveate.models.loading.loader import UnprofiledModel
from foveate.models.profiling import chat_profile
from foveate.models.profiling.chat_profile import chat_plans, measure_chat
from foveate.models.profiling.chat_quality import ChatEvaluator
from foveate.models.profiling.profile_state import ProfilingJob, partial_path
from foveate.models.vlm.runner import ChatRunner
from tests.support import chat_models
from tests.support.question_sets import answered, chat_model, unanswered

pytestmark = pytest.mark.usefixtures("inference_on_one_thread")


@pytest.fixture
def model(tmp_path: Path) -> UnprofiledModel[ChatRunner]:
    return chat_model(tmp_path)


def job(runner: ChatRunner, *texts: str, **options: float) -> ProfilingJob:
    plans = tuple(Plan.parse(text, runner.full) for text in ("full", *texts))
    return ProfilingJob(plans, (1, 2), rounds=1, **options)  # type: ignore[arg-type]


def quiet(stage: str, step: str, done: int, total: int) -> None:
    assert 0 <= done <= total


def test_a_profile_has_kinds_stages_and_thresholds(
    model: UnprofiledModel[ChatRunner], tmp_path: Path
) -> None:
    runner, target = model.runner, tmp_path / "chat.profile.json"
    data = answered(tmp_path / "data", runner)
    plans = job(runner, "pool:4", "merge:4", "random:4", "uniform:9", "resolution:4")
    profile = measure_chat(model, data, plans, target, quiet)
    assert Profile.read(target.read_text(), "it") == profile
    assert not partial_path(target).exists()
    full = profile.full
    assert full.chat is not None
    assert full.chat.by_kind == pytest.approx({"count": 1, "name": 2 / 3}, abs=1e-5)
    assert (full.quality, full.tokens) == (1.0, 16) and full.accuracy == pytest.approx(5 / 6, abs=1e-5)
    for m in profile.measurements:
        assert m.chat is not None and m.chat.worst_kind in ("count", "name")
        assert m.chat.encode_s.keys() == m.chat.prefill_s.keys() == m.chat.decode_s.keys() == {1, 2}
        assert m.latency_s[2] == pytest.approx(m.chat.encode_s[2] + m.chat.prefill_s[2])
        assert m.gflops == pytest.approx(m.chat.encode_gflops + m.chat.prefill_gflops, abs=1e-5)
        assert m.chat.worst_quality <= 1 and (m.baseline is None or not m.rung)
    assert {m.baseline for m in profile.measurements} == {None, "random", "uniform"}
    assert profile.merging.keys() == {4} and len(profile.merging[4]) == chat_models.TRUNK.depth
    merged = next(m for m in profile.measurements if m.plan == "merge:4")
    assert merged.tokens == 4
    assert runner.method(Plan.parse("merge:4", runner.full)).reducer(runner.parts.tower) is not None
    # A runner with the profile has its ladder, and merges as it was measured.
    loaded = ChatRunner(chat_models.load(tmp_path), profile=profile)
    assert [rung.plan.relative_to(loaded.full) for rung in loaded.card.ladder] == [
        m.plan for m in profile.ladder
    ]
    assert loaded.card.task == "chat" and loaded.card.ladder[-1].worst_quality == 1.0
    assert loaded.thresholds == runner.thresholds
    assert loaded.card.weights != ChatRunner(chat_models.load(tmp_path)).card.weights
    # On another machine, qualities stay and seconds do not.
    moved = profile.latency_on(replace(profile.setting, device="another"))
    assert moved.full.chat is not None and not moved.full.chat.prefill_s and not moved.full.latency_s


def test_without_answers_quality_is_agreement_with_full(
    model: UnprofiledModel[ChatRunner], tmp_path: Path
) -> None:
    data = unanswered(tmp_path / "data")
    profile = measure_chat(model, data, job(model.runner, "pool:1"), tmp_path / "p.json", quiet)
    assert not profile.data.labelled
    assert (profile.full.quality, profile.full.accuracy) == (1.0, None)
    pooled = next(m for m in profile.measurements if m.plan == "pool:1")
    evaluator = ChatEvaluator(model.runner, data)
    full, own = (
        evaluator.answers(Plan.parse(text, model.runner.full), lambda *_: None) for text in ("full", "pool:1")
    )
    assert pooled.chat is not None
    assert pooled.chat.by_kind == pytest.approx(dict(evaluator.agreement(own, full).by_kind), abs=1e-5)
    assert pooled.quality == pytest.approx(evaluator.agreement(own, full).mean, abs=1e-5)
    assert pooled.chat.worst_quality == min(pooled.chat.by_kind.values())


def test_an_interrupted_run_resumes(
    model: UnprofiledModel[ChatRunner], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, target = unanswered(tmp_path / "data"), tmp_path / "p.json"
    plans = job(model.runner, "pool:4", "merge:4", "guided:4")
    original, asked = ChatEvaluator.answers, list[str]()

    def answers(self: ChatEvaluator, plan: Plan, report: object) -> list[str]:
        if str(plan) in asked or len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(str(plan))
        return original(self, plan, report)  # type: ignore[arg-type]

    monkeypatch.setattr(ChatEvaluator, "answers", answers)
    with pytest.raises(KeyboardInterrupt):
        measure_chat(model, data, plans, target, quiet)
    assert partial_path(target).exists() and not target.exists()
    asked.append("an entry, so that two more plans are answered")
    monkeypatch.setattr(chat_profile, "calibrate", None)  # it is not called again
    profile = measure_chat(model, data, plans, target, quiet)
    assert [m.plan for m in profile.measurements if m.latency_s] == [m.plan for m in profile.measurements]
    assert len(profile.measurements) == 4 and len(set(asked)) == len(asked) == 5
    assert not partial_path(target).exists()


def test_a_budget_measures_full_and_another_one_goes_on(
    model: UnprofiledModel[ChatRunner], tmp_path: Path
) -> None:
    data, target = unanswered(tmp_path / "data"), tmp_path / "p.json"
    short = job(model.runner, "pool:4", "pool:9", "guided:4", budget_s=1e-6)
    profile = measure_chat(model, data, short, target, quiet)
    assert [m.plan for m in profile.measurements] == ["full"]
    assert profile.search is not None and not profile.search.within_budget
    assert [(f.plans, f.count) for f in profile.search.families] == [("pool", 2), ("guided:4", 1)]
    profile = measure_chat(model, data, replace(short, budget_s=None), target, quiet)
    assert len(profile.measurements) == 4 and all(m.latency_s for m in profile.measurements)
    assert profile.search is not None and profile.search.within_budget
    assert not partial_path(target).exists()


def test_all_methods_are_measured_with_full_first(model: UnprofiledModel[ChatRunner]) -> None:
    full, *plans = (plan.relative_to(model.runner.full) for plan in chat_plans(model.runner))
    assert full == "full"
    names = {"pool", "merge", "diverse", "guided", "resolution", "random", "uniform"}
    assert {plan.partition(":")[0] for plan in plans} == names
    assert {"pool:4", "pool:9", "merge:4:unmerge", "resolution:9"} <= set(plans)
    assert plans.index("guided:9") < plans.index("pool:4")
    assert not any("@" in plan for plan in plans)


def test_pooling_is_measured_at_the_smaller_sizes_of_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_profile, "SMALLER_COUNTS", (49, 4))
    checkpoint = chat_models.load(tmp_path)
    sized = replace(checkpoint, card=replace(checkpoint.card, sizes=(64, 48)))
    model = UnprofiledModel(ChatRunner(sized, slots=4, slot_tokens=160), "abc")
    runner = model.runner
    plans = chat_plans(runner)
    small = [plan for plan in plans if plan.image_size != 64]
    assert [plan.relative_to(runner.full) for plan in small] == [f"{chat_models.NAME}@48/pool:4"]
    assert len(set(plans)) == len(plans) and plans[0] == runner.full
    measured = ProfilingJob((runner.full, Plan.parse("pool:4", runner.full), *small), (1,), rounds=1)
    data = unanswered(tmp_path / "data")
    profile = measure_chat(model, data, measured, tmp_path / "p.json", quiet)
    by_plan = {m.plan: m for m in profile.measurements}
    own = by_plan[f"{chat_models.NAME}@48/pool:4"]
    assert own.tokens == 4 and own.gflops < by_plan["pool:4"].gflops
    assert own.chat is not None and own.baseline is None
    loaded = ChatRunner(sized, profile=Profile.read((tmp_path / "p.json").read_text(), "it"))
    assert {rung.plan.relative_to(loaded.full) for rung in loaded.card.ladder} <= by_plan.keys()
