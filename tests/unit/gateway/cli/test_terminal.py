"""Terminals: warnings of variables, characters that a stream lacks, signals, and addresses in use."""

import io
import logging
import os
import signal
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from rich.console import Console

from foveate.core.errors import SetupError
from foveate.core.settings import Settings
from foveate.gateway.cli.__main__ import main as before_imports
from foveate.gateway.cli.terminal import check_address, console, is_unicode, print_line, start_logging

EXAMPLES = Path(__file__).parents[4] / "examples"
CLI = [sys.executable, "-m", "foveate.gateway.cli"]


def test_a_variable_that_is_not_a_setting_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings()
    for name in ("FOVEATE_PORT", "FOVEATE_DRAIN_S", "FOVEATE_PROT"):
        monkeypatch.setenv(name, "1")
    start_logging(settings)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "FOVEATE_PROT is not a setting, and is ignored; did you mean FOVEATE_PORT?" in warnings
    assert not any("FOVEATE_PORT " in text or "FOVEATE_DRAIN_S " in text for text in warnings)


def test_several_models_in_one_variable_are_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FOVEATE_MODELS", "vit-t,vit-xs")
    caplog.set_level(logging.INFO)
    start_logging(Settings())
    sentence = "FOVEATE_MODELS names 2 models; a family is given by --model vit-t,vit-xs"
    assert [record.getMessage() for record in caplog.records].count(sentence) == 1


def test_a_line_is_printed_without_styles(capsys: pytest.CaptureFixture[str]) -> None:
    print_line("[bold]vit-t[/]: 3 models")
    assert capsys.readouterr().out == "[bold]vit-t[/]: 3 models\n"


def test_a_plan_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    console.print("merge:100:unmerge")
    assert capsys.readouterr().out == "merge:100:unmerge\n"


@pytest.mark.parametrize(("encoding", "expected"), [("utf-8", True), ("ascii", False), ("latin-1", False)])
def test_block_characters_need_a_unicode_stream(encoding: str, expected: bool) -> None:
    assert is_unicode(Console(file=io.TextIOWrapper(io.BytesIO(), encoding=encoding))) == expected


@pytest.mark.parametrize("model", ["vit-xs", "vit-t-seg"])
def test_predict_prints_plain_characters_on_an_ascii_terminal(model: str) -> None:
    command = [*CLI, "predict", str(EXAMPLES / "drawn" / "fox.jpg"), "--model", model, "--precision", "fp32"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr
    text = done.stdout.decode("ascii")
    assert "fox" in text
    assert "####" in text or "aaaa" in text


def test_a_name_that_is_not_utf_8_is_printed_in_an_error() -> None:
    done = subprocess.run([*CLI, "predict", b"no-caf\xe9.jpg"], capture_output=True)
    assert done.returncode == 2
    assert b"cannot read no-caf" in done.stderr
    assert b"Traceback" not in done.stderr


def test_ctrl_c_ends_the_imports_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    server = subprocess.Popen(
        [*CLI, "serve"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": path}
    )
    assert server.stdout is not None
    assert server.stdout.readline() == b"importing\n"
    server.send_signal(signal.SIGINT)
    assert server.communicate(timeout=30) == (b"", b"")
    assert server.returncode == -signal.SIGINT, "shells give it the exit status 130"


def test_the_installed_command_handles_ctrl_c_before_its_imports() -> None:
    project = tomllib.loads((EXAMPLES.parent / "pyproject.toml").read_text("utf-8"))
    assert project["project"]["scripts"] == {"foveate": f"{before_imports.__module__}:main"}


def test_ctrl_c_ends_a_server_that_loads_its_models_at_once(tmp_path: Path) -> None:
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    program = (
        "import signal, sys, time\n"
        "from foveate.gateway.cli import main\n"
        "def load(*_):\n"
        "    print('loading', flush=True)\n"
        "    time.sleep(60)\n"
        "main.load_with_status = load\n"
        "sys.argv = ['foveate', 'serve', '--port', '0']\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell may have ignored it
        "main.main()\n"
    )
    server = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )
    assert server.stdout is not None
    assert server.stdout.readline() == b"loading\n"
    server.send_signal(signal.SIGINT)
    _, errors = server.communicate(timeout=20)  # the load goes on for a minute
    assert server.returncode == 128 + signal.SIGINT
    assert b"Traceback" not in errors


def test_an_address_in_use_is_refused_before_models_are_loaded() -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        with pytest.raises(SetupError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
            check_address("127.0.0.1", port)
    check_address("127.0.0.1", 0)
    with pytest.raises(SetupError, match=r"cannot listen on 203\.0\.113\.1:0: "):
        check_address("203.0.113.1", 0)
