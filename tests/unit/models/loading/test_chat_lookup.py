"""Finding and loading vision-language models: by name, from a folder, and what is refused."""

import shutil
from pathlib import Path

import pytest

from foveate.core.errors import SetupError
from foveate.models import zoo
from foveate.models.loading.chat_lookup import find, load_chat_model
from foveate.models.loading.loader import LoadOptions
from tests.support import chat_models
from tests.support.chat_models import NAME
from tests.support.torchvision_ops import import_transformers

import_transformers()
pytestmark = pytest.mark.usefixtures("one_thread")
OPTIONS = LoadOptions(None, "cpu", 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chat")
    chat_models.write(path)
    return path


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in place of the zoo."""
    path = tmp_path / "zoo"
    path.mkdir()
    monkeypatch.setattr(zoo, "shipped", lambda: path)
    return path


def test_a_folder_is_loaded_in_float32(folder: Path) -> None:
    runner = load_chat_model(str(folder), OPTIONS, slots=1, slot_tokens=64)
    assert str(runner.full) == f"{NAME}@64/fp32"
    assert (runner.cache.shape.slots, runner.cache.shape.length) == (1, 64)
    assert str(load_chat_model(str(folder), LoadOptions("bf16", "cpu", 1)).full) == f"{NAME}@64/bf16"


def test_the_trunk_may_be_the_shipped_one(folder: Path, shipped: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(folder, own)
    for name in ("vit-x.toml", "vit-x.safetensors"):
        (own / name).unlink()
    with pytest.raises(SetupError, match=f"^{NAME} needs vit-x, which is not shipped: put vit-x.toml"):
        load_chat_model(str(own), OPTIONS)
    for name in ("vit-x.toml", "vit-x.safetensors"):
        shutil.copy(folder / name, shipped)
    assert load_chat_model(str(own), OPTIONS).full.variant == NAME


def test_a_shipped_model_is_loaded_by_its_name(folder: Path, shipped: Path) -> None:
    shutil.copytree(folder, shipped, dirs_exist_ok=True)
    assert find(NAME) == (NAME, shipped)
    assert load_chat_model(NAME, OPTIONS).full.variant == NAME


@pytest.mark.usefixtures("shipped")
def test_weights_that_are_not_installed_are_named() -> None:
    with pytest.raises(
        SetupError, match=r"^the weights of vit-t-chat are not installed: train them as docs/"
    ):
        find("vit-t-chat")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("", "the name of the model is empty"),
        ("vit-t", "vit-t does not answer questions; vit-t-chat does"),
        ("vit-chat", "there is no vision-language model 'vit-chat'; did you mean vit-t-chat"),
        ("xyz", "there is no vision-language model 'xyz'; there is vit-t-chat, or name a folder"),
        ("./none", "there is no folder ./none"),
        ("{}/vit-x-chat.toml", "vit-x-chat.toml is a file: name the folder that holds NAME.toml, "),
        ("{}/empty", "empty holds no vision-language model: one folder holds NAME.toml, "),
        ("{}/two", "two holds several vision-language models, a, b: one folder holds NAME.toml, "),
    ],
)
def test_a_name_without_a_model_is_refused_in_one_sentence(folder: Path, name: str, sentence: str) -> None:
    (folder / "empty").mkdir(exist_ok=True)
    (folder / "two").mkdir(exist_ok=True)
    for each in ("a", "b"):
        (folder / f"two/{each}.toml").touch()
        (folder / f"two/{each}.{zoo.TOKENIZER}").touch()
    with pytest.raises(SetupError) as refused:
        find(name.format(folder))
    assert sentence in refused.value.detail
