"""From a finished run to the zoo: weights, card, curve, log. `python -m training.ship --model vit-t`."""

import argparse
import json
import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import torch

from foveate.models import checkpoint as disk
from foveate.models.checkpoint import Checkpoint, attach
from foveate.models.zoo import Card, Measured
from training.evaluate import PLANS, heldout_top1
from training.family import FAMILY
from training.pictures import draw_curve, draw_looked_at

ROOT = Path(__file__).parents[2]
ZOO = ROOT / "models/foveate/models/zoo"
DOCS = ROOT / "docs/models"


def load_run(card: Card, run: Path) -> Checkpoint:
    """The model of a run's last checkpoint."""
    state = torch.load(run / "checkpoint.pt", weights_only=True)["model"]
    return attach(card, state, str(run))


def measured(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with its ladder: top-1 on the held-out scenes under each plan, and what that keeps."""
    top1 = {plan: heldout_top1(checkpoint, plan) for plan in PLANS}
    kept = {plan: min(1.0, top1[plan] / top1["full"]) for plan in PLANS}
    ladder = tuple(Measured(plan, round(kept[plan], 4), round(top1[plan], 4)) for plan in reversed(PLANS))
    return replace(checkpoint, ladder=ladder)


def toml(card: Card) -> str:
    """The card as TOML, in the order a person reads it."""
    lines = [
        f"{key} = {json.dumps(getattr(card, key))}" for key in ("name", "description", "licence", "source")
    ]
    names = ",\n".join(f"    {json.dumps(label)}" for label in card.labels)
    lines += [f"labels = [\n{names},\n]", "", "[geometry]"]
    lines += [f"{key} = {json.dumps(value)}" for key, value in asdict(card.geometry).items()]
    lines += ["", "[input]"] + [f"{key} = {json.dumps(value)}" for key, value in asdict(card.input).items()]
    lines += [f"mean = {list(card.mean)}", f"std = {list(card.std)}"]
    for step in card.ladder:
        lines += ["", "[[ladder]]"] + [f"{key} = {json.dumps(value)}" for key, value in asdict(step).items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=FAMILY, default="vit-t")
    parser.add_argument("--run", type=Path, help="folder of the run; runs/MODEL unless told")
    args = parser.parse_args()
    card, run = FAMILY[args.model], args.run or ROOT / "runs" / args.model
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    DOCS.mkdir(parents=True, exist_ok=True)
    weights = ZOO / f"{card.name}.safetensors"
    disk.save(weights, load_run(card, run), half=True)
    shipped = measured(disk.read(weights, card))  # what float16 left of it is what is measured
    disk.save(weights, shipped, half=True)
    (ZOO / f"{card.name}.toml").write_text(toml(shipped))
    shutil.copy(run / "log.jsonl", DOCS / f"{card.name}.log.jsonl")
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    draw_curve(log, DOCS / f"{card.name}.png")
    draw_looked_at(shipped, DOCS / f"{card.name}-looks.png")
    print(*shipped.ladder, sep="\n")


if __name__ == "__main__":
    main()
