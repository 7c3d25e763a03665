"""A virtual environment for each peer, so that neither the project nor another peer gets its packages."""

import logging
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from loadtests.peers.running import ROOT, PeerServer

log = logging.getLogger(__name__)


def python(server: PeerServer, folder: Path) -> Path:
    """The interpreter to run a server with, its packages installed on the first call.

    Raises CalledProcessError where the package index does not have them.
    """
    if not server.packages:
        return Path(sys.executable)
    place = folder / server.name
    stamp, interpreter = place / "installed.txt", place / "bin" / "python"
    wanted = "\n".join(server.packages)
    if not (stamp.exists() and stamp.read_text() == wanted):
        log.info("installing %s", ", ".join(server.packages))
        _install(place, interpreter, server.packages)
        stamp.write_text(wanted)
    return interpreter


def _install(place: Path, interpreter: Path, packages: tuple[str, ...]) -> None:
    """torch comes first and stays pinned, or a package could pull in another build of it."""
    torch = f"torch=={version('torch').partition('+')[0]}"
    _call([sys.executable, "-m", "venv", "--clear", str(place)])
    pip = [str(interpreter), "-m", "pip", "install", "--quiet"]
    _call([*pip, torch])
    constraints = place / "constraints.txt"
    constraints.write_text(f"{torch}\n")
    _call([*pip, "--editable", f"{ROOT}[torch]", *packages], {"PIP_CONSTRAINT": str(constraints)})


def _call(command: list[str], more: dict[str, str] | None = None) -> None:
    subprocess.run(command, check=True, env=os.environ | (more or {}))  # noqa: S603
