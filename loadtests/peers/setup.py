"""The options of the benches with other servers, and what they prepare: weights, profile, environments."""

import argparse
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from subprocess import CalledProcessError

from foveate.models.loading.load import find_family_profile
from foveate.models.loading.machine import current_setting
from foveate.models.weights.hub import load
from loadtests.load.images import catalogue
from loadtests.overhead import fast_precision
from loadtests.peers.environment import python
from loadtests.peers.measure import BenchSetup
from loadtests.peers.model import saved
from loadtests.peers.running import SERVERS
from loadtests.report import RENDER_HELP

log = logging.getLogger(__name__)
CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "foveate" / "peers"
Failed = dict[str, str]
"""Servers that could not be measured, with the reason."""


def add_bench_options(parser: argparse.ArgumentParser, seconds: float, deadlines: str) -> None:
    """Add the options that `prepare` reads, with these defaults, and the options on output."""
    parser.add_argument(
        "--cache", type=Path, default=CACHE, help="folder of weights, environments and logs (%(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="rounds; figures are medians (%(default)s)")
    parser.add_argument("--seconds", type=float, default=seconds, help="length of each run (%(default)s)")
    parser.add_argument(
        "--deadlines-ms", "--promises", default=deadlines, help="deadlines in milliseconds (%(default)s)"
    )
    parser.add_argument("--pictures", choices=("scene", "640x480"), default="640x480", help="(%(default)s)")
    parser.add_argument("--precision", default=fast_precision(), help="of the model (%(default)s)")
    parser.add_argument("--draft", action="store_true", help="print the page and write nothing")
    parser.add_argument("--render", action="store_true", help=RENDER_HELP)


def prepare(options: argparse.Namespace) -> BenchSetup:
    """Write the weights, profile them on this machine if there is no profile, and load the images."""
    options.cache.mkdir(parents=True, exist_ok=True)
    weights = str(saved(options.cache))
    own_setting = current_setting("cpu", options.precision)
    if find_family_profile(weights, load(weights), own_setting)[0] is None:
        log.info("profiling the weights, once")
        command = [sys.executable, "-m", "foveate.gateway.cli", "profile", weights, "--with", "vit-xs"]
        subprocess.run([*command, "--precision", options.precision], check=True)  # noqa: S603
    return BenchSetup(
        weights=weights,
        precision=options.precision,
        images=catalogue(options.pictures, 0, 0),
        image_size=options.pictures,
        seconds=options.seconds,
        deadlines_ms=tuple(map(float, options.deadlines_ms.split(","))),
        loads=tuple(map(float, options.loads.split(","))),
        logs=options.cache,
    )


def settings_of(setup: BenchSetup, rounds: int) -> dict[str, str]:
    """The settings of a run for the page."""
    return {
        "precision": setup.precision,
        "images": setup.image_size,
        "deadline": ", ".join(f"{deadline:g} ms" for deadline in setup.deadlines_ms),
        "rounds": str(rounds),
        "seconds per run": f"{setup.seconds:g}",
    }


def install(names: Sequence[str], cache: Path) -> tuple[list[str], Failed]:
    """Install the servers; the names of the installed ones, and the reasons for the others."""
    failed: Failed = {}
    for name in names:
        try:
            python(SERVERS[name], cache)
        except CalledProcessError as error:
            failed[name] = f"its packages did not install (status {error.returncode})"
            log.warning("%s: %s", name, failed[name])
    return [name for name in names if name not in failed], failed
