"""Count which checkpoints can be served: writes docs/benchmarks/reach.{json,md}.

Every timm architecture is loaded with random weights through the server's own loader, and answers one image.
So does a tiny configuration of each tested architecture of transformers.
"""

import argparse
import json
import logging
from dataclasses import asdict
from pathlib import Path

from loadtests.reach import page, timm_names, transformers_names
from loadtests.reach.attempt import Attempt
from loadtests.report import FOLDER, RENDER_HELP, RUNS, read, render, write

TABLE = FOLDER / "reach-timm.json"
"""Every attempt: the page is rendered from it."""


def main() -> None:
    """Try everything, or with --render write the page again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--render", action="store_true", help=RENDER_HELP)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if arguments.render:
        render("reach", page.body(read("reach"), _read(TABLE)))
        return
    RUNS.mkdir(exist_ok=True)
    tried = timm_names.Tried(RUNS / "reach.jsonl")
    names = timm_names.architectures()
    timm_names.try_all(names, arguments.jobs, tried)
    attempts = [tried.attempts[name] for name, _ in names] + transformers_names.try_all()
    figures = page.figures(attempts)
    TABLE.write_text("[\n" + ",\n".join(json.dumps(asdict(attempt)) for attempt in attempts) + "\n]\n")
    write("reach", figures, page.body(figures, attempts), packages=("torch", "timm", "transformers"))


def _read(path: Path) -> list[Attempt]:
    return [Attempt(**row) for row in json.loads(path.read_text())]


if __name__ == "__main__":
    main()
