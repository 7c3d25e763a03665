"""The command, in a separate process, because Locust patches the standard library on import."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (("--rate", "fast"), "--rate must be a number or several numbers separated by commas, not 'fast'"),
        (("--pictures", "large"), "--pictures must be scene or 640x480, not 'large'"),
    ],
)
def test_an_invalid_option_ends_the_command_with_one_sentence(given: tuple[str, ...], error: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "loadtests.load", *given], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stderr.strip()) == (1, f"error: {error}")
