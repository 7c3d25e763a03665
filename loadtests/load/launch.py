"""The load test for other programs, in a process of its own: its processor time and gevent stay apart."""

import subprocess
import sys
import tempfile
from pathlib import Path

from foveate.core.errors import SetupError
from loadtests.load.result import Run, read_runs


def launch(*options: str) -> list[Run]:
    """What `python -m loadtests.load` finds with these options, a run for each rate. Raises SetupError
    with the sentence it ended with."""
    with tempfile.TemporaryDirectory() as folder:
        into = Path(folder) / "runs.json"
        command = [sys.executable, "-m", "loadtests.load", *options, "--json", str(into)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        if ended.returncode:
            raise SetupError(ended.stderr.strip().removeprefix("error: "))
        return read_runs(into.read_bytes())
