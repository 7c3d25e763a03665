"""Models by name: zoo, local files, random weights, timm; and one sentence for each thing that can fail."""

import sys
from pathlib import Path

import pytest
import torch

from foveate.core.errors import SetupError
from foveate.core.model import InputSpec
from foveate.models import zoo
from foveate.models.weights import hub
from tests.support.checkpoints import LABELS, SMALL, answer, write_zoo

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_zoo(tmp_path)


def test_zoo_model_has_its_card(folder: Path) -> None:
    assert zoo.names(folder) == ("vit-x",)
    loaded = hub.load("vit-x", folder=folder)
    assert (loaded.name, loaded.labels, loaded.licence) == ("vit-x", LABELS, "Apache-2.0")
    assert loaded.input == InputSpec(0.9, "squash", "bilinear")
    assert (loaded.mean, loaded.std) == ((0.5, 0.4, 0.3), (1.0, 0.2, 0.1))
    assert loaded.config == loaded.model.config == SMALL
    assert not loaded.model.training
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}


def test_card_without_weights_is_refused(folder: Path) -> None:
    (folder / "vit-x.safetensors").unlink()
    with pytest.raises(SetupError, match=r"there is no file .*vit-x\.safetensors"):
        hub.load("vit-x", folder=folder)


def test_a_path_is_no_name_of_timm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").touch()
    for name in ("notes.txt", "./notes.txt", str(tmp_path / "notes.txt")):
        with pytest.raises(SetupError, match="is no model: name a"):
            hub.load(name)
    for name in ("./nothing", "../nothing", str(tmp_path / "nothing"), "~/nothing"):
        with pytest.raises(SetupError, match=f"there is no file or folder {name}"):
            hub.load(name)


def test_files_that_are_not_safetensors_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(SetupError, match="there is no file"):
        hub.load(str(path))
    path.write_bytes(b"not a header, and long enough to be read as one")
    with pytest.raises(SetupError, match=r"a\.safetensors is not a readable safetensors file"):
        hub.load(str(path))
    with pytest.raises(
        SetupError, match=r"weights are read from \.safetensors files, and from files of torch\.save"
    ):
        hub.load(str(tmp_path / "a.npz"))
    with pytest.raises(SetupError, match=r"there is no file .*a\.pth"):
        hub.load(str(tmp_path / "a.pth"))


def test_image_size_is_changed_at_load(folder: Path) -> None:
    loaded = hub.load("vit-x", image_size=96, folder=folder)
    assert loaded.config.image_size == loaded.model.config.image_size == 96
    assert loaded.model.get_parameter("pos_embed").shape == (1, 37, 128)
    assert answer(loaded).shape == (1, 3)
    with pytest.raises(SetupError, match="takes image sizes that are multiples of 16, not 100"):
        hub.load("vit-x", image_size=100, folder=folder)


def test_random_weights_need_no_timm_and_are_reproducible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    before = torch.random.get_rng_state()
    first, second = (hub.load("random:vit_tiny_patch16_224") for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first.name == "vit_tiny_patch16_224"
    assert answer(first).isfinite().all()
    assert torch.equal(answer(first), answer(second))
    with pytest.raises(SetupError, match="comes from timm, which is not installed"):
        hub.load("random:vit_little_patch16_reg4_gap_256")
