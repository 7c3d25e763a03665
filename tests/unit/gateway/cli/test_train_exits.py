"""`foveate train-exits` in one process: what it says, writes and refuses."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from foveate.core.errors import SetupError
from foveate.gateway.cli.train_exits import TrainOptions, description, resume_hint, show, train_exits
from foveate.models.distillation.parts import Agreement
from foveate.models.distillation.train import partial_training
from foveate.models.loading.load import ImageModelLoader
from foveate.models.loading.loader import LoadOptions
from foveate.models.weights import hub
from foveate.models.weights.checkpoint import save
from tests.support.measuring import decode, tiny
from tests.support.torchvision_ops import import_timm

import_timm()
pytestmark = pytest.mark.usefixtures("one_thread")
OPTIONS = LoadOptions("fp32", "cpu", 1)


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A checkpoint of a user, with a folder of 60 pictures beside it."""
    for variable in ("XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    save(tmp_path / "mine.safetensors", tiny(name="mine"))
    pictures(tmp_path / "pictures", 60)
    yield str(tmp_path / "mine.safetensors")


def pictures(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        Image.fromarray(np.asarray(decode(str(number).encode()))).save(folder / f"{number}.png")
    return folder


def test_exits_are_trained_written_and_served(
    weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = TrainOptions(weights, tmp_path / "pictures", budget="1s")
    rows = train_exits(options, OPTIONS, 10**6, Console(stderr=True))
    assert options.target == tmp_path / "mine.exits.safetensors" and options.target.exists()
    show(Console(width=120), rows, options)
    printed = capsys.readouterr()
    assert (
        "training exit heads after blocks 1, 2, 3 and token gates after blocks 1, 2, 3 of mine" in printed.err
    )
    assert "baseline" in printed.out and "the most frequent class" in printed.out
    assert f"foveate profile {weights} measures plans with it" in printed.out.replace("\n", " ")
    runner = ImageModelLoader().load(weights, OPTIONS)
    assert {"1", "2", "3"} == set(runner.models["mine"].exit_heads)
    assert any(plan.exit for plan in runner.candidates())
    assert any(plan.reducer.startswith("iared") for plan in runner.candidates())
    with pytest.raises(
        SetupError, match="holds trained exits already: remove it to train again, or pass --out"
    ):
        train_exits(options, OPTIONS, 10**6, Console(stderr=True))


def test_what_cannot_be_trained_is_refused_in_one_sentence(weights: str, tmp_path: Path) -> None:
    folder, few = tmp_path / "pictures", pictures(tmp_path / "few", 7)
    (tmp_path / "empty").mkdir()
    out = tmp_path / "out.safetensors"
    for options, sentence in (
        (TrainOptions("vit-t-clip", folder, out), "does not run in the elastic trunk"),
        (TrainOptions("hf:some/model", folder, out), "does not run in the elastic trunk"),
        (TrainOptions("package.module:Class", folder, out), "does not run in the elastic trunk"),
        (TrainOptions("random:test_resnet", folder, out), "no exits can be trained for random:test_resnet: "),
        (TrainOptions("vit-t,vit-xs", folder, out), "one model at a time"),
        (TrainOptions("vit-t", folder, out), "has exit heads and gates already"),
        (TrainOptions(weights, tmp_path / "nowhere"), "there is no folder"),
        (TrainOptions(weights, tmp_path / "empty"), "there is no image in"),
        (TrainOptions(weights, few), r"7 readable image\(s\) in few are too few to train on"),
        (TrainOptions(weights, folder, budget="soon"), "a budget is a time such as 90s"),
    ):
        with pytest.raises(SetupError, match=sentence) as refused:
            train_exits(options, OPTIONS, 10**6, Console(stderr=True))
        assert "\n" not in refused.value.detail
    assert not out.exists()


def test_exits_are_not_trained_in_a_precision_without_range(weights: str, tmp_path: Path) -> None:
    options = TrainOptions(weights, tmp_path / "pictures", tmp_path / "out.safetensors")
    with pytest.raises(SetupError, match="trained in fp32 or bf16, not in fp16: pass --precision bf16"):
        train_exits(options, LoadOptions("fp16", "cpu", 1), 10**6, Console(stderr=True))


def test_an_interruption_names_the_file_from_which_training_goes_on(tmp_path: Path) -> None:
    options = TrainOptions("mine", tmp_path, tmp_path / "x.safetensors")
    assert resume_hint(options) == "interrupted; nothing was trained yet"
    partial_training(options.target).write_text("")
    assert f"the training so far is in {tmp_path / 'x.safetensors.partial'}" in resume_hint(options)


def test_the_description_names_what_is_missing() -> None:
    assert description(hub.load("vit-xs")).startswith("training exit heads after blocks 3, 4, 5, 7 of vit-xs")
    assert "patch readers of the dense head" in description(hub.load("vit-t-seg"))


def test_agreements_are_shown_beside_their_baselines(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rows = [Agreement("exit after block 3", 0.91, 0.2, "the most frequent class")]
    show(Console(width=120), rows, TrainOptions("m", tmp_path, tmp_path / "x"))
    assert [line.split()[-6:-4] for line in capsys.readouterr().out.splitlines() if "block 3" in line] == [
        ["91.0%", "20.0%"]
    ]
