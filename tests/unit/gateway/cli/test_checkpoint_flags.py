"""Flags that describe the weights of one model, and the setting for several."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file
from typer.testing import CliRunner

from foveate.core.checkpoint_options import CheckpointOptions
from foveate.core.errors import SetupError
from foveate.core.settings import Settings
from foveate.gateway.cli import serve_local
from foveate.gateway.cli.checkpoint_flags import FLAGS, check_model_options, model_options
from foveate.gateway.cli.main import app, main
from foveate.gateway.cli.model_loader import load, load_unprofiled
from tests.support.checkpoints import LABELS, SMALL, weights
from tests.support.described import TIMM, write_described

pytestmark = pytest.mark.usefixtures("one_thread")
FOX = str(Path(__file__).parents[4] / "examples/drawn/fox.jpg")


@pytest.fixture(autouse=True)
def user_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def bare(tmp_path: Path) -> str:
    save_file(weights(SMALL), tmp_path / "mine.safetensors")
    return str(tmp_path / "mine.safetensors")


def test_each_option_is_a_flag() -> None:
    assert {*FLAGS} == {*CheckpointOptions.model_fields}


def test_prediction_under_flags(bare: str, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("\n".join(LABELS))
    flags = ["--mean", "0.485,0.456,0.406", "--heads", "4", "--labels", str(tmp_path / "names.txt")]
    done = CliRunner().invoke(app, ["predict", FOX, "--model", bare, "--precision", "fp32", "--json", *flags])
    assert done.exit_code == 0, done.output
    assert {row["label"] for row in json.loads(done.stdout)["predictions"]} == {*LABELS}


def test_flags_of_serve_reach_the_settings(bare: str, monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[Settings] = []
    monkeypatch.setattr(serve_local, "serve", lambda settings, *_: served.append(settings))
    # Another server may use the default port.
    monkeypatch.setattr("foveate.gateway.cli.main.check_address", lambda *_: None)
    flags = ["--crop-pct", "0.9", "--std", "0.25", "--pool", "avg"]
    done = CliRunner().invoke(app, ["serve", "--model", bare, *flags])
    assert done.exit_code == 0, done.output
    expected = CheckpointOptions(crop_pct=0.9, std=(0.25, 0.25, 0.25), pool="avg")
    assert served[0].model_options == {bare: expected}


def test_models_are_described_by_one_variable(bare: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOVEATE_MODELS", f"vit-t,{bare}")
    monkeypatch.setenv("FOVEATE_MODEL_OPTIONS", json.dumps({bare: {"heads": 4, "labels": list(LABELS)}}))
    settings = Settings(precision="fp32", device="cpu", threads=1)
    assert load(bare, settings, served=False).card.labels == LABELS
    stated = load_unprofiled(bare, settings, ()).weights
    monkeypatch.delenv("FOVEATE_MODEL_OPTIONS")
    assert load_unprofiled(bare, Settings(precision="fp32", device="cpu", threads=1), ()).weights != stated


def test_folder_and_its_file_are_served_alike(tmp_path: Path) -> None:
    folder = write_described(tmp_path / "animals", TIMM)
    settings = Settings(precision="fp32", device="cpu", threads=1)
    first, second = (
        load(str(path), settings, served=False).card for path in (folder, folder / "model.safetensors")
    )
    assert first == second
    assert (first.name, first.labels) == ("animals", LABELS)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("serve", "--heads", "3"), "--heads describes the weights of one --model, and there are 0"),
        (
            ("serve", "-m", "a.safetensors", "-m", "b.safetensors", "--eps", "1e-5"),
            "and there are 2: write it",
        ),
        (("predict", FOX, "-m", "vit-t", "--heads", "3"), "heads cannot be set for vit-t"),
        (
            ("predict", FOX, "-m", "a.safetensors", "--mean", "123.7"),
            "--mean cannot be 123.7: 123.7 is not in",
        ),
        (
            ("profile", "a.safetensors", "--activation", "relu"),
            "--activation cannot be relu: Input should be",
        ),
        (("predict", FOX, "-m", "a.safetensors", "--image-size", "100000"), "--image-size cannot be 100000"),
        (("predict", FOX, "-m", "a.safetensors", "--crop-mode", "border"), "--crop-mode cannot be border"),
    ],
)
def test_flags_that_cannot_be_are_one_sentence(
    arguments: tuple[str, ...],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["foveate", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    errors = " ".join(capsys.readouterr().err.split())
    assert sentence in errors
    assert "Traceback" not in errors


def test_options_of_a_model_that_is_not_served_are_refused() -> None:
    options: dict[str, Any] = {"mine.safetensor": {"heads": 3}}
    with pytest.raises(
        SetupError, match=r"names 'mine\.safetensor', which is not in models: mine\.safetensors"
    ):
        check_model_options(Settings(models=("mine.safetensors",), model_options=options))
    check_model_options(Settings())
    assert model_options(("a", "b"), {}) is None
