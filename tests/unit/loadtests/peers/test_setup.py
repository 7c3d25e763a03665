"""Options and installation of the benches with other servers."""

import argparse
import subprocess
from pathlib import Path

import pytest

from loadtests.peers import setup
from loadtests.peers.setup import add_bench_options, install


def parsed(*given: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_bench_options(parser, seconds=12.0, deadlines="500")
    return parser.parse_args(given)


def test_the_old_name_of_the_deadlines_works() -> None:
    assert parsed().deadlines_ms == "500"
    assert parsed("--deadlines-ms", "250").deadlines_ms == "250"
    assert parsed("--promises", "100").deadlines_ms == "100"


def test_a_server_without_packages_needs_no_installation(tmp_path: Path) -> None:
    assert install(["foveate", "fastapi"], tmp_path) == (["foveate", "fastapi"], {})
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_does_not_install_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(server: object, folder: Path) -> Path:
        raise subprocess.CalledProcessError(7, "pip")

    monkeypatch.setattr(setup, "python", fails)
    assert install(["mosec"], tmp_path) == ([], {"mosec": "its packages did not install (status 7)"})
