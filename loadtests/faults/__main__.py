"""Measure faults on real server processes: `make bench-faults`. Writes docs/benchmarks/faults.{json,md}."""

import argparse
import json
import logging
import signal
import sys
from pathlib import Path

from loadtests.faults import connections, memory, shutdown, start
from loadtests.faults.page import page
from loadtests.report import FOLDER, RENDER_HELP, Figures, read, render, write

log = logging.getLogger("loadtests.faults")

PARTS = {
    "start": start.measure,
    "memory": memory.measure,
    "connections": connections.measure,
    "shutdown": shutdown.measure,
}
OF_METHODS = {"zerotprune_vs_tome_points": "elastic", "glance8_points_lost": "glances"}
"""Figures that other benches measure, with the name of the bench: they are copied from its file."""


def main() -> None:
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # so that the running server is stopped too
    logging.basicConfig(level="INFO", format="%(asctime)s %(message)s")
    if options.render:
        print(render("faults", page(read("faults"))).read_text())
        return
    names = [name for name in options.only.split(",") if name] or list(PARTS)
    figures = (committed() if options.only else {}) | of_methods()
    for name in names:
        measured = PARTS[name]()
        log.info("%s: %s", name, {key: round(value, 3) for key, value in measured.items()})
        figures |= {key: round(value, 4) for key, value in measured.items()}
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
        return
    print(write("faults", figures, page(figures)).read_text())


def committed() -> Figures:
    """The figures of the committed file; none if there is no file."""
    return read("faults") if (FOLDER / "faults.json").exists() else {}


def of_methods() -> Figures:
    """The figures of other benches, from their committed files."""
    return {name: value for name, bench in OF_METHODS.items() if (value := read(bench).get(name)) is not None}


def arguments() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.faults", description=__doc__)
    parser.add_argument("--only", default="", help=f"measure some parts only, of {','.join(PARTS)}")
    parser.add_argument("--json", type=Path, help="write the figures to this file, and no page")
    parser.add_argument("--render", action="store_true", help=RENDER_HELP)
    options = parser.parse_args()
    unknown = [name for name in options.only.split(",") if name and name not in PARTS]
    if unknown:
        parser.error(f"there is no part {unknown[0]!r}; the parts are {', '.join(PARTS)}")
    return options


if __name__ == "__main__":
    main()
