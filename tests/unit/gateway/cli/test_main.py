"""The command line: predictions as JSON, errors in one sentence, and the list of models."""

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from foveate.core.errors import SetupError
from foveate.gateway.cli.main import app, main, settings_from
from foveate.models import zoo

pytestmark = pytest.mark.usefixtures("one_thread")

EXAMPLES = Path(__file__).parents[4] / "examples"


@pytest.fixture(autouse=True)
def user_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("profile", "no-such-model", "--budget", "99999999999h"), "a budget is at most 168h"),
        (("train-exits", "no-such-model", "--data", ".", "--precision", "fp8"), "precision: "),
    ],
)
def test_flags_are_checked_before_a_model_is_loaded(arguments: tuple[str, ...], sentence: str) -> None:
    failed = CliRunner().invoke(app, arguments)
    assert isinstance(failed.exception, SetupError), failed.output
    assert failed.exception.detail.startswith(sentence)


def test_a_prediction_as_json(tmp_path: Path) -> None:
    drawn = tmp_path / "explained.png"
    options = ["--model", "vit-xs", "--precision", "fp32", "--top-k", "2", "--json", "--explain", str(drawn)]
    done = CliRunner().invoke(app, ["predict", str(EXAMPLES / "drawn" / "fox.jpg"), *options])
    assert done.exit_code == 0, done.output
    fields = json.loads(done.stdout)
    assert (fields["model"], fields["predictions"][0]["label"]) == ("vit-xs", "fox")
    assert len(fields["predictions"]) == 2
    assert drawn.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("missing.jpg",), "cannot read missing.jpg: No such file or directory"),
        (
            ("missing.jpg", "--explain", "page.jpg"),
            "--explain writes a PNG, so",
        ),
        (("missing.jpg", "--precision", "fp8"), "precision: "),
        (("missing.jpg", "--model", ""), "models: must name at least one model"),
    ],
)
def test_an_expected_error_is_one_sentence_and_status_2(
    arguments: tuple[str, ...],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["foveate", "predict", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    errors = capsys.readouterr().err
    assert f"foveate: {sentence}" in errors
    assert "Traceback" not in errors


def test_flags_have_precedence_over_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOVEATE_PORT", "9000")
    assert settings_from({"port": None}).port == 9000
    assert settings_from({"port": 9001}).port == 9001
    with pytest.raises(SetupError, match="port: Input should be less than or equal to 65535"):
        settings_from({"port": 99999})


def test_the_list_of_models_has_every_shipped_model_and_rung() -> None:
    done = CliRunner().invoke(app, ["models"], env={"COLUMNS": "200"})
    assert done.exit_code == 0
    for name in (*zoo.names(), *zoo.chat_names(), "efficientnet-lite"):
        assert f"{name}: " in done.stdout
        profile = zoo.profile(name)
        for m in profile.ladder if profile else ():
            assert m.plan in done.stdout
