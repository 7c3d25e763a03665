"""Finding the text tower of a checkpoint: folders, files, and models without one."""

from pathlib import Path

import pytest

from foveate.models.huggingface.text_runner import TextRunner
from foveate.models.loading import text_towers
from foveate.models.loading.load import ImageModelLoader
from foveate.models.loading.loader import LoadOptions
from foveate.models.loading.registry import loader_for
from foveate.models.loading.text_towers import text_runner
from foveate.models.weights import hub, transformers_hub
from tests.support.embedders import embedder, saved_embedder
from tests.support.text_towers import saved_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")
OPTIONS = LoadOptions("fp32", "cpu", 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_checkpoint(tmp_path_factory.mktemp("checkpoints") / "clip", "clip")


@pytest.mark.parametrize("form", ["{}", "hf:{}", "{}/model.safetensors"])
def test_checkpoint_with_a_text_tower_takes_labels(folder: Path, form: str) -> None:
    name = form.format(folder)
    runner = loader_for(name).load(name, OPTIONS)
    (texts,) = runner.submodels
    assert isinstance(texts, TextRunner) and texts.warmup is not None
    assert runner.card.zero_shot == texts.zero_shot
    assert (runner.card.task, texts.card.name) == ("embed", f"{runner.card.name}-text")


def test_without_a_tokenizer_the_model_makes_embeddings_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = str(saved_checkpoint(tmp_path / "clip", "clip", tokenizer=False))
    runner = ImageModelLoader().load(name, OPTIONS)
    assert runner.card.zero_shot is None and not runner.submodels
    assert "answers no labels on /classify" in caplog.text


def test_other_models_have_no_text_tower(tmp_path: Path) -> None:
    path = saved_embedder(tmp_path)
    for name in (str(path), "random:vit_tiny_patch16_224"):
        assert text_runner(name, hub.load(name), "cpu", 0) is None


@pytest.mark.parametrize("name", ["org/clip", "hf:org/clip"])
def test_repository_is_loaded_by_its_name(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, object]] = []
    monkeypatch.setattr(transformers_hub, "is_trunk_repository", lambda _: True)
    monkeypatch.setattr(transformers_hub, "fetch_weights", lambda _: folder / "model.safetensors")
    monkeypatch.setattr(
        text_towers, "load_text_tower", lambda source, table: asked.append((source, table["model_type"]))
    )
    assert text_runner(name, embedder(), "cpu", 0) is None
    assert asked == [("org/clip", "clip")]
