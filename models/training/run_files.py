"""The files of a training run: checkpoints that are never half written, and a log of JSON lines."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch


def save_atomically(path: Path, state: object) -> None:
    """Save with torch by renaming, so that an interruption never leaves half a checkpoint."""
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    temporary.replace(path)


def truncate_log(step: int, log: Path) -> None:
    """Remove the lines after a step: an interrupted run repeats what it did after its last checkpoint."""
    if log.exists():
        rows = [line for line in log.read_text().splitlines() if json.loads(line)["step"] <= step]
        log.write_text("".join(f"{row}\n" for row in rows))


def append_row(log: Path, row: Mapping[str, float]) -> None:
    """Append one JSON line to a log, and print it."""
    with log.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(row, flush=True)
