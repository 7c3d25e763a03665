"""Vision-language models by name and folder, with their profiles."""

from pathlib import Path
from typing import Any

import pytest

from foveate.core.errors import SetupError
from foveate.core.plan import Plan
from foveate.core.profile import Profile
from foveate.models import zoo
from foveate.models.loading import chat_models as loading
from foveate.models.loading.chat_models import ChatModelLoader
from foveate.models.loading.loader import LoadOptions
from foveate.models.loading.profile_store import profile_path
from foveate.models.loading.registry import loader_for
from foveate.models.profiling.chat_profile import measure_chat
from foveate.models.profiling.profile_state import ProfilingJob
from foveate.models.vlm.runner import ChatRunner
from foveate.models.vlm.visual_tokens import VisualTokens
from tests.support import chat_models
from tests.support.question_sets import unanswered

pytestmark = pytest.mark.usefixtures("inference_on_one_thread")

OPTIONS = LoadOptions(device="cpu", threads=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    chat_models.write(tmp_path)
    return tmp_path


def test_a_model_is_a_folder_or_its_file(folder: Path) -> None:
    for name in (str(folder), str(folder / f"{chat_models.NAME}.safetensors")):
        loader = loader_for(name)
        assert isinstance(loader, ChatModelLoader)
        runner = loader.load(name, OPTIONS, warm_ladder=False)
        assert runner.card.name == chat_models.NAME and runner.card.task == "chat"
        assert [rung.plan for rung in runner.card.ladder] == [runner.full]
        assert runner.full.precision == "fp32" and runner.card.parameters > 0
        assert profile_path(name) == folder / f"{chat_models.NAME}.profile.json"
    assert not ChatModelLoader().accepts(str(folder / "vit-x.safetensors"))
    assert not ChatModelLoader().accepts("vit-t")


def test_the_profile_beside_the_weights_gives_the_ladder(folder: Path) -> None:
    model = loader_for(str(folder)).load_unprofiled(str(folder), OPTIONS)
    assert len(model.weights) == 64
    plans = tuple(Plan.parse(text, model.runner.full) for text in ("full", "merge:4", "pool:1"))
    data = unanswered(folder / "data")
    measured = measure_chat(
        model, data, ProfilingJob(plans, (1,), rounds=1), profile_path(str(folder)), lambda *_: None
    )
    runner = loader_for(str(folder)).load(str(folder), OPTIONS, warm_ladder=False)
    assert [rung.gflops for rung in runner.card.ladder] == [m.gflops for m in measured.ladder]
    assert runner.card.ladder[-1].worst_quality == 1.0
    assert runner.thresholds.keys() == {4}
    # A profile of other weights is ignored.
    other = Profile.read(profile_path(str(folder)).read_text(), "it").text().replace(model.weights, "0" * 64)
    profile_path(str(folder)).write_text(other)
    assert len(loader_for(str(folder)).load(str(folder), OPTIONS, warm_ladder=False).card.ladder) == 1


def test_a_model_that_is_to_be_served_runs_every_rung(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[Plan] = []

    class Watched(ChatRunner):
        def visual_tokens(self, *parts: Any) -> list[VisualTokens]:
            plans.append(parts[1])
            return super().visual_tokens(*parts)

    monkeypatch.setattr(loading, "ChatRunner", Watched)
    options = LoadOptions(device="cpu", threads=1, chat_slots=3, chat_slot_tokens=64)
    runner = ChatModelLoader().load(str(folder), options)
    assert plans == [rung.plan for rung in runner.card.ladder]
    assert (runner.cache.shape.slots, runner.cache.shape.length) == (3, 64)
    assert runner.cache.free_slots == 3


def test_a_model_that_cannot_answer_is_not_served(folder: Path) -> None:
    options = LoadOptions(device="cpu", threads=1, chat_slot_tokens=16)
    with pytest.raises(SetupError, match="gives no answer about a blank picture: the chat has"):
        ChatModelLoader().load(str(folder), options)


def test_the_default_model_without_weights_is_missing_and_not_unknown() -> None:
    if "vit-t-chat" in zoo.chat_names():
        pytest.skip("the weights are shipped")
    with pytest.raises(SetupError, match="the weights of vit-t-chat are not installed: train them"):
        loader_for("vit-t-chat").load("vit-t-chat", OPTIONS)


def test_siblings_are_refused(folder: Path) -> None:
    with pytest.raises(SetupError, match="no other model answers in its name: leave out --with"):
        loader_for(str(folder)).load_unprofiled(str(folder), OPTIONS, ("vit-t",))


def test_a_folder_of_several_models_is_refused(folder: Path) -> None:
    for kind in ("toml", "safetensors", "tokenizer.json"):
        (folder / f"other.{kind}").write_bytes((folder / f"{chat_models.NAME}.{kind}").read_bytes())
    with pytest.raises(SetupError, match=r"holds 2 models, other, vit-x-chat: name the \.safetensors file"):
        loader_for(str(folder))
