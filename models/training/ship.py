"""Copy finished runs of a classifier to the zoo: `python -m training.ship --model vit-t`.

It writes the weights, the card and the figures of the documentation.
"""

import argparse
import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import torch

from foveate.models.weights import checkpoint as disk
from foveate.models.weights.checkpoint import Checkpoint, attach
from foveate.models.zoo import CheckpointCard
from training.exits import EXITS, with_exits
from training.family import FAMILY
from training.figures import draw_curve, draw_kept_patches
from training.gates import STAGES

ROOT = Path(__file__).parents[2]
ZOO = ROOT / "models/foveate/models/zoo"
DOCS = ROOT / "docs/models"
HERE = Path(__file__).parent


def load_run(card: CheckpointCard, run: Path) -> Checkpoint:
    """The model of a run's last checkpoint, with its exit heads and gates."""
    state = torch.load(run / "checkpoint.pt", weights_only=True)["model"]
    checkpoint = attach(card, state, str(run))
    if (run / "gates.pt").exists():
        gates = torch.load(run / "gates.pt", weights_only=True)["gates"]
        state = checkpoint.model.state_dict() | {f"gates.{key}": value for key, value in gates.items()}
        checkpoint = attach(replace(checkpoint, gates=STAGES[card.name]), state, str(run))
    if (run / "exits.pt").exists():
        checkpoint = with_exits(checkpoint, EXITS[card.name], run)
    return checkpoint


def toml(card: CheckpointCard) -> str:
    """The card as TOML, with the general fields first."""
    lines = [
        f"{key} = {json.dumps(getattr(card, key))}" for key in ("name", "description", "licence", "source")
    ]
    names = ",\n".join(f"    {json.dumps(label)}" for label in card.labels)
    lines += [f"labels = [\n{names},\n]", f"gates = {list(card.gates)}", "", "[geometry]"]
    lines += [f"{key} = {json.dumps(value)}" for key, value in asdict(card.config).items()]
    lines += ["", "[input]"] + [f"{key} = {json.dumps(value)}" for key, value in asdict(card.input).items()]
    lines += [f"mean = {list(card.mean)}", f"std = {list(card.std)}"]
    for spec in card.exits:
        lines += ["", "[[exits]]"] + [f"{key} = {json.dumps(value)}" for key, value in asdict(spec).items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=FAMILY, default="vit-t")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="folder of the runs")
    args = parser.parse_args()
    name, first, last = args.model, args.runs / args.model, args.runs / f"{args.model}-sizes"
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    DOCS.mkdir(parents=True, exist_ok=True)
    weights = ZOO / f"{name}.safetensors"
    trained = load_run(FAMILY[name], last)
    disk.save(weights, trained, half=True)
    plain = args.runs / f"{name}-plain"
    if plain.exists():  # the baseline of budget-aware training; not installed
        disk.save(HERE / f"{name}-plain.safetensors", load_run(FAMILY[name], plain), half=True)
    (ZOO / f"{name}.toml").write_text(toml(trained))
    rows = [json.loads(line) for line in (first / "log.jsonl").read_text().splitlines()]
    draw_curve(rows, DOCS / f"{name}.png")
    draw_kept_patches(disk.read(weights), DOCS / f"{name}-looks.png")


if __name__ == "__main__":
    main()
