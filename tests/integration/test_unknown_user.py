"""`foveate serve` without HOME, as a uid without an entry in the user database, as containers have."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[2]
AS_UNKNOWN_USER = ["unshare", "--user", "--map-user=54321", "--map-group=54321"]
"""Runs a command in a user namespace, in which this process has another uid. Needs no privileges."""
TIMEOUT_S = 120
USER_VARIABLES = ("HOME", "USER", "LOGNAME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME")


def can_be_unknown() -> bool:
    """Whether this system lets processes make user namespaces."""
    try:
        return subprocess.run([*AS_UNKNOWN_USER, "true"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def wait_for(words: str, process: subprocess.Popen[bytes], log: Path) -> str:
    """The log, once it contains these words."""
    until = time.monotonic() + TIMEOUT_S
    while words not in log.read_text() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    assert words in log.read_text(), log.read_text()
    return log.read_text()


@pytest.mark.skipif(not can_be_unknown(), reason="needs user namespaces")
def test_a_server_of_an_unknown_user_without_home_starts_and_answers(tmp_path: Path) -> None:
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in USER_VARIABLES and not name.startswith("FOVEATE_")
    }
    variables = {"COLUMNS": "500", "PYTHONPATH": os.pathsep.join(sys.path)}
    log = tmp_path / "log"
    command = [*AS_UNKNOWN_USER, sys.executable, "-m", "foveate.gateway.cli", "serve"]
    flags = ["--model", "vit-xs", "--threads", "1", "--port", "0"]
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [*command, *flags], cwd=tmp_path, stdout=output, stderr=output, env=inherited | variables
        ) as process,
    ):
        try:
            text = wait_for("serving on http", process, log)
            url = text.partition("serving on ")[2].split()[0].rstrip(",;")
            assert "the measured precision is not kept: this user has no home folder" in text
            image = (ROOT / "examples" / "drawn" / "fox.jpg").read_bytes()
            answer = httpx.post(
                f"{url}/classify", content=image, headers={"content-type": "image/jpeg"}, timeout=TIMEOUT_S,
                trust_env=False,
            )  # fmt: skip
            assert answer.json()["predictions"][0]["label"] == "fox"
            process.send_signal(signal.SIGTERM)
            assert process.wait(TIMEOUT_S) == 0
        finally:
            process.kill()
    assert "Traceback" not in log.read_text()
    assert list(tmp_path.iterdir()) == [log], "it keeps nothing"
