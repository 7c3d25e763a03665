"""Run a load test in a separate process, so that gevent and the processor time are not shared."""

import subprocess
import sys
import tempfile
from pathlib import Path

from foveate.core.errors import SetupError
from loadtests.load.result import LoadTestRun, read_runs


def launch(*options: str) -> list[LoadTestRun]:
    """The runs of `python -m loadtests.load` with these options, one per rate.

    Raises SetupError with the error message of the process.
    """
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "runs.json"
        command = [sys.executable, "-m", "loadtests.load", *options, "--json", str(output)]
        process = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        if process.returncode:
            raise SetupError(process.stderr.strip().removeprefix("error: "))
        return read_runs(output.read_bytes())
