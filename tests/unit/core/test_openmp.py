"""The spins of OpenMP threads: limited unless the environment says otherwise, and before torch is loaded."""

import os
import subprocess
import sys

import pytest

from foveate.core.openmp import SPINS, limit_spinning

LOAD = """
import os, sys
from foveate.core.settings import Settings
from foveate.gateway.cli import model_loader
assert "torch" not in sys.modules
try:
    model_loader.load("no-such-model", Settings(device="cpu", precision="fp32"))
except Exception:
    pass
assert "torch" in sys.modules
print(os.environ.get("GOMP_SPINCOUNT"))
"""


@pytest.mark.parametrize(
    ("environment", "spins"),
    [({}, SPINS), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)],
)
def test_what_the_environment_says_wins(
    environment: dict[str, str], spins: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    limit_spinning()
    assert os.environ.get("GOMP_SPINCOUNT") == spins
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)


def test_loading_a_model_limits_the_spins() -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    run = subprocess.run(
        [sys.executable, "-c", LOAD], env=environment, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == SPINS
