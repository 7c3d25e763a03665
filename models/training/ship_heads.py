"""Copy finished runs of dense and clip heads to the zoo, with cards: `python -m training.ship_heads`."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from foveate.models.heads.clip import ClipSpec
from foveate.models.heads.dense import DenseSpec
from training.depth_gate import HIDDEN
from training.labels import LABELS
from training.motions import NAMES
from training.ship import ROOT, ZOO


def toml(fields: dict[str, Any], field: str, spec: DenseSpec | ClipSpec) -> str:
    """The card of a head on another model's trunk."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in fields.items()]
    lines += ["", f"[{field}]"] + [f"{key} = {json.dumps(value)}" for key, value in asdict(spec).items()]
    return "\n".join(lines) + "\n"


def ship(name: str, field: str, head: dict[str, Tensor], card: str) -> None:
    """Write the weights in float16, and the card."""
    weights = {f"{field}.{key}": value.half().contiguous() for key, value in head.items()}
    save_file(weights, ZOO / f"{name}.safetensors")
    (ZOO / f"{name}.safetensors").chmod(0o644)
    (ZOO / f"{name}.toml").write_text(card)


def ship_dense(trunk: str, runs: Path) -> None:
    """Ship a dense head, with its gate if one was trained."""
    name = f"{trunk}-seg"
    run = runs / name
    head = torch.load(run / "dense.pt", weights_only=True)["head"]
    gated = (run / "gate.pt").exists()
    if gated:
        gate = torch.load(run / "gate.pt", weights_only=True)
        head |= {f"gate.{key}": value for key, value in gate.items()}
    fields = {
        "name": name,
        "description": f"{trunk} with a dense head: segments {len(LABELS)} emoji and the background",
        "trunk": trunk,
    }
    spec = DenseSpec(len(LABELS) + 1, gate=HIDDEN if gated else 0)
    ship(name, "dense", head, toml(fields, "dense", spec))


def ship_clip(trunk: str, runs: Path) -> None:
    """Ship a clip head."""
    name = f"{trunk}-clip"
    run = runs / name
    fields = {
        "name": name,
        "description": f"{trunk} with a clip head: classifies {len(NAMES)} motions of emoji in video clips",
        "trunk": trunk,
        "labels": list(NAMES),
    }
    head = torch.load(run / "clip.pt", weights_only=True)["head"]
    ship(name, "clip", head, toml(fields, "clip", ClipSpec(len(NAMES))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trunk", default="vit-t")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="folder of the runs")
    args = parser.parse_args()
    if (args.runs / f"{args.trunk}-seg/dense.pt").exists():
        ship_dense(args.trunk, args.runs)
    if (args.runs / f"{args.trunk}-clip/clip.pt").exists():
        ship_clip(args.trunk, args.runs)


if __name__ == "__main__":
    main()
