"""One virtual environment per peer, so that packages of a peer do not affect the project or other peers."""

import logging
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from loadtests.peers.running import ROOT, PeerServer

log = logging.getLogger(__name__)


def python(server: PeerServer, folder: Path) -> Path:
    """The interpreter for a server; the first call installs the packages of the server.

    Raises CalledProcessError if they cannot be installed.
    """
    if not server.packages:
        return Path(sys.executable)
    environment = folder / server.name
    stamp, interpreter = environment / "installed.txt", environment / "bin" / "python"
    requirements = "\n".join(server.packages)
    if not (stamp.exists() and stamp.read_text() == requirements):
        log.info("installing %s", ", ".join(server.packages))
        _install(environment, interpreter, server.packages)
        stamp.write_text(requirements)
    return interpreter


def _install(environment: Path, interpreter: Path, packages: tuple[str, ...]) -> None:
    """Install torch first and keep it pinned, because a package may require another build."""
    torch = f"torch=={version('torch').partition('+')[0]}"
    _call([sys.executable, "-m", "venv", "--clear", str(environment)])
    pip = [str(interpreter), "-m", "pip", "install", "--quiet"]
    _call([*pip, torch])
    constraints = environment / "constraints.txt"
    constraints.write_text(f"{torch}\n")
    _call([*pip, "--editable", f"{ROOT}[torch]", *packages], {"PIP_CONSTRAINT": str(constraints)})


def _call(command: list[str], variables: dict[str, str] | None = None) -> None:
    subprocess.run(command, check=True, env=os.environ | (variables or {}))  # noqa: S603
